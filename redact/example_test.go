package redact_test

import (
	"context"
	"fmt"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/redact"
)

func ExampleFilter_Value() {
	type User struct {
		Name     string
		Password string
		TokensOf int    `redact:"false"`
		Note     string `json:"note" redact:"true"`
	}
	filter := redact.New("password", "token")
	fmt.Printf("%+v\n", filter.Value(User{"Ada", "analytical", 3, "likes engines"}))
	fmt.Println(filter.Value(map[string]any{"id": 7, "access_token": "abc"}))
	// Output:
	// {Name:Ada Password:[FILTERED] TokensOf:3 Note:[FILTERED]}
	// map[access_token:[FILTERED] id:7]
}

func ExampleFilter_Value_bus() {
	filter := redact.New()
	bus, err := tidings.New(tidings.Options{
		Redact: filter.Value,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer bus.Close()
	ctx := context.Background()
	_, err = bus.Subscribe(ctx, "card.added", func(_ context.Context, e tidings.Event) error {
		fmt.Println(e.Payload())
		return nil
	}, &tidings.SubscribeOptions{Inline: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = bus.Publish(ctx, "card.added", map[string]string{"owner": "Ada", "credit_card": "4111 1111"})
	// Output: map[credit_card:[FILTERED] owner:Ada]
}
