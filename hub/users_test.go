package hub

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

func mustParse(t *testing.T, text string) []*declared {
	t.Helper()
	users, err := parseUsers("users.conf", text)
	if err != nil {
		t.Fatal(err)
	}
	return users
}

func TestUsersFile(t *testing.T) {
	key := publicKey(t)
	users := mustParse(t, "# who may what\r\n"+`
shop may publish order.>, cart.*; may subscribe payment.done   # twice of one user
billing may subscribe order.> in billing, audit; billing may publish payment.>
ops may everything
shop nkey `+key+`
prefix staging
staging-shop runs shop, shop-worker; may publish >; may not change streams
`)
	if len(users) != 4 {
		t.Fatalf("%d users: %+v", len(users), users)
	}
	shop, billing, ops, staging := users[0], users[1], users[2], users[3]
	if shop.name != "shop" || shop.line != 3 || !slices.Equal(shop.publish, []string{"order.>", "cart.*"}) || !slices.Equal(shop.nkeys, []string{key}) ||
		len(shop.subscribe) != 1 || shop.subscribe[0].Pattern != "payment.done" || !slices.Equal(shop.subscribe[0].Groups, []string{"shop"}) {
		t.Errorf("shop: %+v", shop)
	}
	if len(billing.subscribe) != 1 || !slices.Equal(billing.subscribe[0].Groups, []string{"billing", "audit"}) || !slices.Equal(billing.publish, []string{"payment.>"}) {
		t.Errorf("billing: %+v", billing)
	}
	if !ops.all || ops.prefix != "" {
		t.Errorf("ops: %+v", ops)
	}
	if staging.prefix != "staging" || !slices.Equal(staging.apps, []string{"shop", "shop-worker"}) || !staging.fixed || !slices.Equal(staging.publish, []string{">"}) {
		t.Errorf("staging-shop: %+v", staging)
	}
}

func publicKey(t testing.TB) string {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// Each mistake is named by line and word, with the way out.
func TestMistakesInUsersFile(t *testing.T) {
	key := publicKey(t)
	for text, want := range map[string][]string{
		"":                                     {"users.conf", "shop may publish order.>"},
		"shop":                                 {":1:", `"shop"`, "may, runs or nkey"},
		"\nshop can publish order.>":           {":2:", `"can"`, "may, runs or nkey"},
		"shop may":                             {"publish, subscribe, everything"},
		"shop may pubish order.>":              {`"pubish"`, `did you mean "publish"`},
		"shop may publish":                     {"the line ends", "topics"},
		"shop may publish a.>,":                {`","`, "nothing comes after"},
		"shop may publish a.> b.>":             {`"b.>"`, "one comma"},
		"shop may publish a..b":                {`"a..b"`, "no topic"},
		"shop may publish $JS.API.>":           {`"$JS.API.>"`, "no topic"},
		"shop may publish >":                   {`">"`, "shop may everything"},
		"shop may subscribe *.placed":          {`"*.placed"`, "prefix"},
		"shop may subscribe a.> in":            {"the line ends", "groups"},
		"shop may subscribe in g":              {"patterns"},
		"shop may everything but a":            {`"but"`},
		"shop may not publish a":               {"not change streams"},
		"shop may everything; may publish a.b": {`"shop"`, "leave one"},
		"shop runs app1":                       {`"shop"`, "may do nothing"},
		"a/b may publish x.y":                  {`"a/b"`, "letters, digits"},
		"; may publish a.b":                    {`"may"`, "no user before"},
		"prefix":                               {`"prefix"`, "Options.Prefix"},
		"prefix a.*":                           {`"a.*"`, "prefix"},
		"admin may publish a.b":                {`"admin"`, "another name"},
		"shop nkey UABC":                       {`"UABC"`, "56 letters"},
		"a may publish x.y; nkey " + key + "\nb may publish x.y; nkey " + key: {":2:", `"b"`, "that a has"},
		"a may publish x.y\nprefix p\na may publish z":                        {":3:", `"a"`, "line 1", "p-a"},
	} {
		_, err := parseUsers("users.conf", text)
		if err == nil {
			t.Errorf("%q: no error", text)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: the error %q does not say %q", text, err, part)
			}
		}
	}
}

// What is a secret, and in the wrong file, is not in the error.
func TestMistakesTellNoSecret(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	secret := newSecret()
	for _, text := range []string{"shop nkey " + string(seed), string(seed), "shop:" + secret, secret, "shop may " + secret} {
		_, err := parseUsers("users.conf", text)
		if err == nil {
			t.Errorf("%.8s: no error", text)
		} else if strings.Contains(err.Error(), string(seed[10:30])) || strings.Contains(err.Error(), secret[10:30]) {
			t.Error("the secret was told:", err)
		}
	}
}

func FuzzUsers(f *testing.F) {
	for _, s := range []string{"shop may publish order.>; may subscribe a.b in g, h # x", "prefix p\na runs b, c", "a may everything", "a may not change streams",
		"ops nkey UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", ";;,", "a may subscribe ,in", "prefix >"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		users, err := parseUsers("f", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("%q does not name the file", err)
			}
			return
		}
		if len(users) == 0 {
			t.Error("no users, and no error")
		}
		b := &built{opts: &server.Options{}, users: users}
		b.addUsers()
		for _, u := range b.opts.Users {
			if u.Permissions == nil {
				continue
			}
			if len(u.Permissions.Publish.Allow) == 0 || len(u.Permissions.Subscribe.Allow) == 0 { // nothing would mean everything
				t.Errorf("%s may everything by mistake", u.Username)
			}
			for _, s := range u.Permissions.Publish.Allow {
				if s == ">" || strings.HasPrefix(s, "*") || strings.HasPrefix(s, "$JS.API.>") || strings.ContainsAny(s, " \t\n\r") || !utf8.ValidString(s) {
					t.Errorf("%s may publish to %q", u.Username, s)
				}
			}
			for _, s := range u.Permissions.Subscribe.Allow {
				if s == ">" || s[0] == '*' || strings.HasPrefix(s, "_INBOX.>") || len(strings.Fields(s)) > 2 {
					t.Errorf("%s may subscribe to %q", u.Username, s)
				}
			}
		}
	})
}

// The files of secrets are made once, are their owner's only, and are kept.
func TestSecretsAreKept(t *testing.T) {
	dir, users := t.TempDir(), usersFile(t, "shop may publish order.>")
	h := mustStart(t, Options{Dir: dir, Users: users})
	file := filepath.Join(dir, "users", "shop")
	before := mustRead(t, file)
	for _, name := range []string{"users", "users/shop", "users/admin"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("mode of DIR/%s is %04o", name, st.Mode().Perm())
		}
	}
	mustStop(t, h)
	again := mustStart(t, Options{Dir: dir, Users: users})
	if now := mustRead(t, file); now != before || !strings.HasPrefix(now, "shop:") {
		t.Errorf("the secret was %d bytes and is %d after a restart, or another", len(before), len(now))
	}
	for _, u := range again.Users() {
		if strings.Contains(u.URL, strings.TrimSpace(strings.TrimPrefix(before, "shop:"))) {
			t.Error("a URL holds the secret:", u.URL)
		}
	}
}

func TestSecretFilesAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"readable by others": {"shop:0123456789abcdef", 0o644, "chmod 600"},
		"of another":         {"bill:0123456789abcdef", 0o600, "does not hold shop:"},
		"no name":            {"0123456789abcdef", 0o600, "does not hold shop:"},
		"short":              {"shop:secret", 0o600, "16 characters"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "users", "shop")
			if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, file, c.content)
			if err := os.Chmod(file, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := Start(t.Context(), Options{Dir: dir, Addr: "127.0.0.1:0", Logger: quiet(), Users: usersFile(t, "shop may publish a.b")})
			wantError(t, err, file, c.want)
			if strings.Contains(err.Error(), "0123456789") || strings.Contains(err.Error(), ":secret") {
				t.Error("the error shows the secret:", err)
			}
		})
	}
}

func usersFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "users.conf")
	write(t, file, text)
	return file
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
