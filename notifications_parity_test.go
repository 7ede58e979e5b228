package tidings_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tidings-go/tidings"
	"github.com/tidings-go/tidings/tidingstest"
)

// told notes what inline subscribers are told, in order.
type told []string

// as is a handler that notes its name and the topic.
func (l *told) as(name string) tidings.Handler {
	return func(_ context.Context, e tidings.Event) error {
		l.note(name, e.Topic())
		return nil
	}
}

func (l *told) note(words ...string) { *l = append(*l, strings.Join(words, " ")) }

// want compares, and forgets.
func (l *told) want(t *testing.T, lines ...string) {
	t.Helper()
	if !slices.Equal(*l, lines) {
		t.Errorf("told %q, want %q", []string(*l), lines)
	}
	*l = nil
}

// listen subscribes inline, so that a test sees what happened when a call
// returns, and needs no lock.
func listen(t *testing.T, b either, pattern string, h tidings.Handler) *tidings.Subscription {
	t.Helper()
	return subscribe(t, b, pattern, h, &tidings.SubscribeOptions{Inline: true})
}

// announce publishes nil under each topic.
func announce(t *testing.T, b either, topics ...string) {
	t.Helper()
	for _, topic := range topics {
		if err := b.Publish(ctx, topic, nil); err != nil {
			t.Errorf("Publish(%q): %v", topic, err)
		}
	}
}

// run instruments fn, which must be what decides about the result.
func run(t *testing.T, b either, topic string, fn func(context.Context)) {
	t.Helper()
	if err := b.Instrument(ctx, topic, nil, func(ctx context.Context) error { fn(ctx); return nil }); err != nil {
		t.Errorf("Instrument(%q): %v", topic, err)
	}
}

var errBoom, errBang = errors.New("boom"), errors.New("bang")

func failWith(err error) tidings.Handler {
	return func(context.Context, tidings.Event) error { return err }
}

// inUse says whether the topics of a rowBus have seen events before: the bus looks
// closer at the first events of a topic, and takes another way for the rest.
var inUse bool

// rowBus is a kit on which the rows are tested.
func rowBus(t *testing.T, o tidings.Options) *tidingstest.Bus {
	t.Helper()
	b := kit(t, o)
	useTopics(t, b)
	return b
}

// useTopics makes the topics of the rows ones that have seen events, if they are to
// be.
func useTopics(t *testing.T, b either) {
	t.Helper()
	if !inUse {
		return
	}
	s := listen(t, b, ">", failWith(nil))
	for _, topic := range []string{"a", "b", "a.b", "outer", "inner", "one", "two", "row06.n", "row29.placed", "row48.placed", "sql.select"} {
		for range 200 {
			announce(t, b, topic)
		}
	}
	s.Stop()
}

// typedRowBus is a newBus in place of the kit: its typed handlers are called
// directly.
func typedRowBus(t *testing.T, o tidings.Options) *tidings.Bus {
	t.Helper()
	b := newBus(t, o)
	useTopics(t, b)
	return b
}

// What holds for the first events of a topic holds for all that follow.
func TestRowsHoldForTopicsInUse(t *testing.T) {
	inUse = true
	defer func() { inUse = false }()
	for name, test := range map[string]func(*testing.T){
		"01Subscribe":                         TestRow01Subscribe,
		"04Prepend":                           TestRow04Prepend,
		"05SameHandlerTwice":                  TestRow05SameHandlerTwice,
		"06OneKindOfHandler":                  TestRow06OneKindOfHandler,
		"07Times":                             TestRow07Times,
		"08StartAndFinish":                    TestRow08StartAndFinish,
		"09EventIsShared":                     TestRow09EventIsShared,
		"10Order":                             TestRow10Order,
		"11KindsDoNotReorder":                 TestRow11KindsDoNotReorder,
		"12FilterDoesNotReorder":              TestRow12FilterDoesNotReorder,
		"13OneMeasurementForAll":              TestRow13OneMeasurementForAll,
		"14InlineIsSynchronous":               TestRow14InlineIsSynchronous,
		"15InstrumentReturnsWhatTheBlockDoes": TestRow15InstrumentReturnsWhatTheBlockDoes,
		"16BlockFillsInThePayload":            TestRow16BlockFillsInThePayload,
		"17NobodyListens":                     TestRow17NobodyListens,
		"18ErrorAndPanicOfTheBlock":           TestRow18ErrorAndPanicOfTheBlock,
		"19GoexitIsFinished":                  TestRow19GoexitIsFinished,
		"20Nested":                            TestRow20Nested,
		"21ListenersAreFixedAtTheBeginning":   TestRow21ListenersAreFixedAtTheBeginning,
		"22HandlersMayUseTheBus":              TestRow22HandlersMayUseTheBus,
		"23StartFails":                        TestRow23StartFails,
		"24HandlerFailsAfterTheBlock":         TestRow24HandlerFailsAfterTheBlock,
		"25AllRunThoughOneFails":              TestRow25AllRunThoughOneFails,
		"26ErrorsAreJoinedInOrder":            TestRow26ErrorsAreJoinedInOrder,
		"27AnyFailureByAnyWay":                TestRow27AnyFailureByAnyWay,
		"28PublishCarriesOnePayload":          TestRow28PublishCarriesOnePayload,
		"29PayloadOfAnotherType":              TestRow29PayloadOfAnotherType,
		"31StopOne":                           TestRow31StopOne,
		"32ExcludeAName":                      TestRow32ExcludeAName,
		"33ExclusionLasts":                    TestRow33ExclusionLasts,
		"35TemporarySubscription":             TestRow35TemporarySubscription,
		"36SilencedAtEachEvent":               TestRow36SilencedAtEachEvent,
		"37Spans":                             TestRow37Spans,
		"38SpanOfNobody":                      TestRow38SpanOfNobody,
		"39SpansEndInAnyOrder":                TestRow39SpansEndInAnyOrder,
		"45Event":                             TestRow45Event,
		"48MethodsAreHandlers":                TestRow48MethodsAreHandlers,
		"51TwoObjects":                        TestRow51TwoObjects,
		"53FailureIsLoggedAndReported":        TestRow53FailureIsLoggedAndReported,
		"58FilterGetsTheTopicOnly":            TestRow58FilterGetsTheTopicOnly,
		"60PayloadIsUntouched":                TestRow60PayloadIsUntouched,
		"64Tags":                              TestRow64Tags,
		"65ContextTravels":                    TestRow65ContextTravels,
		"66MiddlewareSeesPayloadsFirst":       TestRow66MiddlewareSeesPayloadsFirst,
	} {
		t.Run(name, test)
	}
}

// notificationRules is how many rules of ActiveSupport::Notifications there are.
const notificationRules = 68

// A parityRow is one row of the table in docs/notifications.md.
type parityRow struct {
	number            int
	rails, here, test string
}

func parityRows(t *testing.T, doc string) (rows []parityRow) {
	t.Helper()
	for line := range strings.Lines(doc) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		n, err := strconv.Atoi(cells[0])
		if err != nil || !strings.HasPrefix(line, "|") {
			continue
		}
		if len(cells) != 4 {
			t.Errorf("row %d has %d columns, not 4", n, len(cells))
			continue
		}
		rows = append(rows, parityRow{n, cells[1], cells[2], cells[3]})
	}
	return rows
}

// testFuncs are the tests and examples of a package of this module.
func testFuncs(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Example|Fuzz)\w*)\(`).FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
	}
	return names
}

var (
	verdict   = regexp.MustCompile(`^(done|declined): \S`)
	namedTest = regexp.MustCompile("^`(?:([a-z]+)\\.)?((?:Test|Example|Fuzz)\\w+)`$")
	rowOfTest = regexp.MustCompile(`^TestRow(\d\d)`)
)

// Each rule has one row, each row a verdict and a test that exists, and each test
// of a row is named by it.
func TestNotificationsDocIsComplete(t *testing.T) {
	text, err := os.ReadFile("docs/notifications.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := parityRows(t, string(text))
	if len(rows) != notificationRules {
		t.Errorf("%d rows, want %d", len(rows), notificationRules)
	}
	known := map[string][]string{"": testFuncs(t, ".")}
	cited := map[int][]string{}
	for i, r := range rows {
		if r.number != i+1 {
			t.Errorf("row %d is where %d should be", r.number, i+1)
		}
		if r.rails == "" || !verdict.MatchString(r.here) {
			t.Errorf("row %d says neither done nor declined: %q", r.number, r.here)
		}
		for name := range strings.SplitSeq(r.test, ", ") {
			m := namedTest.FindStringSubmatch(name)
			if m == nil {
				t.Errorf("row %d names no test: %q", r.number, name)
				continue
			}
			pkg, test := m[1], m[2]
			if _, read := known[pkg]; !read {
				known[pkg] = testFuncs(t, pkg)
			}
			if !slices.Contains(known[pkg], test) {
				t.Errorf("row %d names %s, which does not exist", r.number, name)
			}
			cited[r.number] = append(cited[r.number], test)
		}
	}
	for _, test := range known[""] {
		if m := rowOfTest.FindStringSubmatch(test); m != nil {
			if n, _ := strconv.Atoi(m[1]); !slices.Contains(cited[n], test) {
				t.Errorf("row %d does not name its test %s", n, test)
			}
		}
	}
}

// The Go that the document shows is in examples, whose output is checked.
func TestNotificationsDocShowsWhatCompiles(t *testing.T) {
	text, err := os.ReadFile("docs/notifications.md")
	if err != nil {
		t.Fatal(err)
	}
	examples, err := os.ReadFile("example_notifications_test.go")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(text, -1)
	if len(shown) == 0 {
		t.Error("no Go is shown")
	}
	for _, code := range shown {
		indented := regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(string(code[1]), "\t$1")
		if !strings.Contains(string(examples), indented) {
			t.Errorf("in no example:\n%s", code[1])
		}
	}
}
