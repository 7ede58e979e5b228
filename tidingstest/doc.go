// Package tidingstest is for the tests of programs that use tidings. It gives
// them a bus that is strict about what a test should not leave behind, and a
// recorder of what was published.
//
//	func TestChargeOnOrder(t *testing.T) {
//		bus := tidingstest.New(t)
//		rec := bus.Record("payment.>")
//		shop.Setup(bus.Bus) // subscribes the handler under test to order.placed
//
//		if err := bus.Publish(t.Context(), "order.placed", shop.Order{ID: 7, Total: 30}); err != nil {
//			t.Fatal(err)
//		}
//
//		paid := rec.Expect(tidingstest.Event("payment.charged", shop.Payment{Order: 7, Sum: 30}))
//		bus.Settle() // everything published so far has been handled
//		rec.ExpectNone("payment.refused")
//		t.Log("charged by", paid[0].Source())
//	}
//
// # Promises
//
// A test whose bus comes from [New] fails at its end if a handler still runs, if
// events were left or dropped, if the bus had an error that nobody expected, or
// if an expected one did not come; the text has the place of the subscription and
// the stack of the handler. The logger may be used after the test has ended.
//
// Nothing here sleeps for a guessed time: what waits is woken by what it waits
// for, and its limit only ends a test that fails: after Options.Timeout, or once
// the bus has been idle for a second, which no goroutine needs to come to its
// Publish. One that works longer, and a timer, are waited for by
// [Recorder.Within]. Everything works inside
// testing/synctest bubbles, where limits are virtual time, and in parallel tests;
// no goroutine is left when the test ends.
//
// Methods that fail the test at once (Settle, Wait and all Expect methods of
// [Recorder]) are for the test's own goroutine, as [testing.T.FailNow] is, and not
// for handlers. All others may be called concurrently and from inside handlers.
package tidingstest
