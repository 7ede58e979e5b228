package hub

import (
	"fmt"
	"time"
)

// Reload reads Users, Config and the token again and has the server go on with what they
// say now. Who has a token or a secret that holds no longer is cut off, and a user that is
// not there any more; what else changed of a user holds at once. The files of certificates
// need no Reload.
//
// It fails when a file is wrong, or says what the server cannot change while it runs;
// the error says which, and all is as before.
func (h *Hub) Reload() error {
	h.reloading.Lock()
	defer h.reloading.Unlock()
	if err := h.dir.readToken(); err != nil {
		return fmt.Errorf("hub: nothing was changed: %w", err)
	}
	b, err := h.cfg.build(h.dir)
	if err != nil {
		return fmt.Errorf("hub: nothing was changed: %w", err)
	}
	if err := h.apply(b); err != nil {
		return fmt.Errorf("hub: nothing was changed: %w; a restart would take it", err)
	}
	h.cfg.Logger.Info("hub: read its files again", present("users", h.cfg.Users, "config", h.cfg.Config)...)
	return nil
}

// apply gives the running server its options. reloading is held.
func (h *Hub) apply(b *built) error {
	if b.opts.Port == 0 {
		b.opts.Port = h.built.Load().opts.Port
	}
	h.log.hide(b.secrets)
	if err := h.srv.ReloadOptions(b.opts.Clone()); err != nil {
		h.log.hide(h.built.Load().secrets)
		return err
	}
	h.built.Store(b)
	h.warn(b)
	return nil
}

// warn says what is allowed, and may not be what was meant.
func (h *Hub) warn(b *built) {
	for _, l := range b.clear {
		h.cfg.Logger.Warn("hub: reachable from other machines without TLS: its secrets and events can be read on the way; set Options.TLSCert and TLSKey (--tls-cert, --tls-key)", "listener", l.name, "addr", l.addr())
	}
	if o := b.opts; !o.SyncAlways {
		h.cfg.Logger.Warn(fmt.Sprintf("hub: sync_interval in %s is %v: what was acknowledged in that time is lost if the power fails or the kernel crashes, though Publish has returned nil; without it each event is on disk first", h.cfg.Config, o.SyncInterval.Round(time.Millisecond)))
	}
}
