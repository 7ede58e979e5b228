package drill

import (
	"net/url"

	"github.com/tidings-go/tidings/internal/proxy"
)

// newProxy starts a proxy to the hub, wherever it is at the time.
func (d *drill) newProxy() (*proxy.Proxy, error) {
	return proxy.New(func() (string, error) {
		u, err := url.Parse(d.hub.url)
		if err != nil {
			return "", err
		}
		return u.Host, nil
	})
}

// through is the hub's URL by way of a proxy.
func (d *drill) through(p *proxy.Proxy) string {
	u, err := url.Parse(d.hub.url)
	if err != nil {
		return d.hub.url // who uses it says what is wrong with it
	}
	u.Host = p.Addr()
	return u.String()
}
