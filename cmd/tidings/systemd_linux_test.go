package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidings-go/tidings/internal/loop"
)

const unit = "pay.service"

// A start returns when the workers serve, however long that takes within
// --ready-timeout; a reload makes a new generation of workers, under the same master.
func TestSystemdStartsAndReloads(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "TimeoutStartSec=1s\nEnvironment=PAY_AWAITS=/srv/go\n")
	start := m.begin("start", unit)
	m.untilShown(unit, "StatusText", "0 of 4 workers ready")
	m.until("four workers start", func() bool { return m.count("starts") == 4 })
	m.pass(2 * time.Second)
	m.expect(unit, "ActiveState", "activating")
	if start.Ended() {
		t.Error("systemctl start has returned before a worker was ready")
	}
	m.write("srv/go", "")
	must(t, start.Wait(t.Context()))
	m.expect(unit, "ActiveState", "active")
	m.expect(unit, "StatusText", "4 workers of generation 1 ready")
	m.expect(unit, "NRestarts", "0")
	m.order("1", 0)
	m.untilNoted("ends 1")

	master := m.mainPID(unit)
	must(t, os.Remove(filepath.Join(m.dir, "srv/go")))
	reload := m.begin("reload", unit)
	m.untilShown(unit, "ActiveState", "reloading")
	m.pass(2 * time.Second)
	m.expect(unit, "ActiveState", "reloading")
	m.write("srv/go", "")
	must(t, reload.Wait(t.Context()))
	m.untilShown(unit, "StatusText", "4 workers of generation 2 ready")
	m.untilShown(unit, "ActiveState", "active")
	m.until("the old workers end", func() bool { return m.count("ends") == 4 })
	if now := m.mainPID(unit); now != master {
		t.Errorf("the reload has made %d the main process, it was %d", now, master)
	}
	m.order("2", 0)
	m.untilNoted("ends 2")
	m.handledOnce("1", "2")
	m.do("stop", unit)
	m.expect(unit, "Result", "success")
}

// A stop drains: the master asks for as long as --drain-timeout is, and handlers
// that take longer than TimeoutStopSec end.
func TestSystemdStopDrains(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "TimeoutStopSec=1s\n")
	m.do("start", unit)
	m.order("long", 4*time.Second)
	m.untilNoted("begins long")
	m.do("stop", unit)
	m.expect(unit, "Result", "success")
	m.expect(unit, "ExecMainStatus", "0")
	m.handledOnce("long")
}

// After USR2 systemd follows the new master, and the end of the old one is not the
// end of the service, nor of the new workers. What holds of the first master then
// holds of the second: a stop drains, a death is noticed.
func TestSystemdFollowsAnUpgrade(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "")
	m.do("start", unit)
	upgrade := func() (next int) {
		t.Helper()
		old := m.mainPID(unit)
		next = m.execAgain(old)
		m.order(fmt.Sprint("across ", old), time.Second)
		m.signal(old, "QUIT")
		m.until("the old master ends", func() bool { return !m.alive(old) })
		m.expect(unit, "ActiveState", "active")
		m.expect(unit, "NRestarts", "0")
		if now := m.mainPID(unit); now != next {
			t.Errorf("the main process is %d, not the new master %d", now, next)
		}
		return next
	}
	upgrade()
	third := upgrade()
	m.order("at the stop", 3*time.Second)
	m.untilNoted("begins at the stop")
	m.do("stop", unit)
	if m.alive(third) {
		t.Error("systemctl stop has returned before the master ended")
	}
	m.expect(unit, "Result", "success")
	m.handledOnce("at the stop")

	m.do("start", unit)
	fourth := upgrade()
	m.signal(fourth, "KILL")
	m.untilShown(unit, "NRestarts", "1")
	m.untilShown(unit, "ActiveState", "active")
}

// A master that is killed is started again with the last good release, while the
// workers that it leaves behind finish what they took.
func TestSystemdRestartsAKilledMaster(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "")
	m.do("start", unit)
	m.order("long", 3*time.Second)
	m.untilNoted("begins long")
	m.write("srv/pay/releases/1/pay", broken)
	master := m.mainPID(unit)
	m.signal(master, "KILL")
	m.untilShown(unit, "NRestarts", "1")
	m.untilShown(unit, "ActiveState", "active")
	m.until("the old workers end", func() bool { return m.count("ends") == 4 })
	m.order("next", 0)
	m.untilNoted("ends next")
	m.handledOnce("long", "next")
	m.expect(unit, "NRestarts", "1")
}

// broken is a program that does not boot.
const broken = "#!/bin/sh\necho $$ tries >>/var/lib/pay/journal\necho cannot reach the database >&2\nexit 1\n"

// A program that never boots fails the start, says why, and is not tried faster
// for that systemd starts the master again.
func TestSystemdShowsWhatDoesNotBoot(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "TimeoutStartSec=1s\n")
	m.edit("--ready-timeout=60s", "--ready-timeout=1s")
	m.write("srv/pay/releases/1/pay", broken)
	begun := time.Now()
	start := loop.Go(func(context.Context) {
		if _, err := m.systemctl("start", unit); err == nil {
			t.Error("systemctl start says that it works")
		}
	})
	m.untilShown(unit, "StatusText", "0 of 4 workers ready; worker 0 has died")
	m.untilShown(unit, "StatusText", "exit status 1, with the last words: cannot reach the database")
	must(t, start.Wait(t.Context()))
	m.untilShown(unit, "NRestarts", "1")
	// Of each start, not more than what comes of pauses that double from 250 ms.
	took, starts, tries := time.Since(begun), 2, m.count("tries")
	if most := starts * 4 * 8; tries > most {
		t.Errorf("in %v and %d starts the program was tried %d times, want at most %d", took, starts, tries, most)
	}
	m.copy(filepath.Join(m.dir, "bin/tidings"), "srv/pay/releases/1/pay")
	m.untilShown(unit, "ActiveState", "active")
}

// A master that stops turning is ended and started again; until then it tells the
// watchdog that it lives.
func TestSystemdWatchesTheMaster(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "WatchdogSec=2s\n")
	m.do("start", unit)
	first := m.show(unit, "WatchdogTimestampMonotonic")
	m.until("three WATCHDOG=1", func() bool {
		now := m.show(unit, "WatchdogTimestampMonotonic")
		if now != first {
			first = now
			return true
		}
		return false
	})
	m.expect(unit, "NRestarts", "0")
	m.order("long", 5*time.Second)
	m.untilNoted("begins long")
	m.signal(m.mainPID(unit), "STOP")
	m.untilShown(unit, "NRestarts", "1")
	m.untilShown(unit, "ActiveState", "active")
	if !strings.Contains(m.kmsg.String(), "Watchdog timeout") || !strings.Contains(m.kmsg.String(), "SIGABRT") {
		t.Error("systemd does not say that it was the watchdog")
	}
	m.until("the old workers end", func() bool { return m.count("ends") == 4 })
	m.handledOnce("long")
}

// A worker needs no master of ours.
func TestSystemdIsAMasterItself(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "TimeoutStopSec=1s\nEnvironment=PAY_AWAITS=/srv/go\n")
	text, err := os.ReadFile(deploying + "pay.service")
	must(t, err)
	head, rest, _ := strings.Cut(string(text), "ExecStart=")
	_, tail, _ := strings.Cut(rest, "-- ./pay")
	m.write("units/pay.service", head+"WorkingDirectory=/srv/pay/current\nExecStart=/srv/pay/current/pay"+tail)
	m.do("daemon-reload")
	start := m.begin("start", unit)
	m.untilShown(unit, "StatusText", "setting up")
	m.expect(unit, "ActiveState", "activating")
	m.write("srv/go", "")
	must(t, start.Wait(t.Context()))
	m.expect(unit, "StatusText", "serving 1 subscriptions")
	m.order("long", 3*time.Second)
	m.untilNoted("begins long")
	m.do("stop", unit)
	m.expect(unit, "Result", "success")
	m.handledOnce("long")
}

// A socket of systemd's reaches the workers by its name, starts the service when
// somebody connects, and refuses nobody over a reload, an upgrade, and the death of
// the master.
func TestSystemdPassesASocketOn(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "")
	addr := freeAddr(t)
	text, err := os.ReadFile(deploying + "pay.socket")
	must(t, err)
	m.write("units/pay.socket", strings.Replace(string(text), "ListenStream=8080", "ListenStream="+addr, 1))
	m.do("daemon-reload")
	m.do("start", "pay.socket")
	m.expect(unit, "ActiveState", "inactive")
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func() error {
		answer, err := client.Get("http://" + addr)
		if err == nil {
			_, err = io.ReadAll(answer.Body)
			answer.Body.Close()
		}
		return err
	}
	must(t, get())
	m.untilShown(unit, "ActiveState", "active")

	answers := 0
	asking := loop.Go(func(ctx context.Context) {
		for ctx.Err() == nil {
			if err := get(); err != nil {
				t.Errorf("after %d answers: %v", answers, err)
				return
			}
			answers++
		}
	})
	m.do("reload", unit)
	m.untilShown(unit, "StatusText", "generation 2 ready")
	old := m.mainPID(unit)
	m.execAgain(old)
	m.signal(old, "QUIT")
	m.until("the old master ends", func() bool { return !m.alive(old) })
	m.signal(m.mainPID(unit), "KILL")
	m.untilShown(unit, "NRestarts", "1")
	m.untilShown(unit, "ActiveState", "active")
	asking.StopAndWait()
	if answers < 10 {
		t.Errorf("there were %d answers: too few to show anything", answers)
	}
	m.do("stop", unit)
	must(t, get())
	m.untilShown(unit, "ActiveState", "active")
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

// A service that is stopped in the middle of an upgrade is stopped whole: both
// masters drain, and systemd waits for them.
func TestSystemdStopsBothMasters(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "")
	m.do("start", unit)
	next := m.execAgain(m.mainPID(unit))
	for i := range 20 {
		m.order(strconv.Itoa(i), time.Second)
	}
	m.until("old and new workers are at work", func() bool { return len(m.journal()) >= 8+8 })
	m.do("stop", unit)
	m.expect(unit, "Result", "success")
	if m.alive(next) || m.count("ends") != 8 {
		t.Errorf("when systemctl stop returns, not all have ended:\n%s", strings.Join(m.journal(), "\n"))
	}
}

// The hub that a master keeps is the same one over reloads and a new master, and ends with
// the service.
func TestSystemdKeepsTheHub(t *testing.T) {
	needSystemd(t)
	m := bootMachine(t, "")
	m.edit("    -- ./pay", "    --hub=/var/lib/pay/hub --hub-listen=127.0.0.1:0 -- ./pay")
	hub := func() int {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(m.dir, "lib/pay/hub/lock"))
		must(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
		return pid
	}
	m.do("start", unit)
	first := hub()
	m.do("reload", unit)
	m.untilShown(unit, "StatusText", "of generation 2 ready")
	old := m.mainPID(unit)
	m.execAgain(old)
	m.signal(old, "QUIT")
	m.until("the old master ends", func() bool { return !m.alive(old) })
	m.pass(time.Second) // in a tenth of that the new master tells systemd that it is its child now
	if now := hub(); now != first || !m.alive(first) {
		t.Errorf("the hub is process %d, it was %d", now, first)
	}
	m.order("at the stop", 2*time.Second)
	m.untilNoted("begins at the stop")
	m.do("stop", unit)
	m.expect(unit, "Result", "success")
	if m.alive(first) {
		t.Error("the hub runs on without its service")
	}
	m.handledOnce("at the stop")
}
