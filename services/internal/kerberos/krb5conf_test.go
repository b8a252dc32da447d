package kerberos

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeKeytab makes a keytab with a key of a principal.
func writeKeytab(t *testing.T, name, realm string) string {
	t.Helper()
	k := keytab.New()
	if err := k.AddEntry(name, realm, "secret", time.Unix(1, 0), 1, etypeID.AES256_CTS_HMAC_SHA1_96); err != nil {
		t.Fatal(err)
	}
	data, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(t.TempDir(), "keytab"), string(data))
}

// A krb5.conf as Linux distributions have it: parts in other files, and sections that come twice.
func TestKrb5Conf(t *testing.T) {
	dir := t.TempDir()
	parts := filepath.Join(dir, "parts")
	if err := os.Mkdir(parts, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(parts, "a.conf"), "[libdefaults]\n default_realm = A.EXAMPLE\n[realms]\n A.EXAMPLE = {\n  kdc = a:88\n }\n")
	write(t, filepath.Join(parts, ".hidden.conf"), "[libdefaults]\n default_realm = WRONG\n")
	write(t, filepath.Join(parts, "old.conf~"), "[libdefaults]\n default_realm = WRONG\n")
	more := write(t, filepath.Join(dir, "more"), "[domain_realm]\n .b.example = B.EXAMPLE\n")
	path := write(t, filepath.Join(dir, "krb5.conf"), fmt.Sprintf(`# a comment
includedir %s/
include %s

[logging]
    default = FILE:/var/log/krb5libs.log

[libdefaults]
    dns_lookup_realm = false
    ticket_lifetime = 24h
    renew_lifetime = 7d
    forwardable = true
    rdns = false
    pkinit_anchors = FILE:/etc/pki/tls/certs/ca-bundle.crt
    default_ccache_name = KEYRING:persistent:%%{uid}
    include_nothing = true

[realms]
 B.EXAMPLE = {
  kdc = b:88
  admin_server = b
 }
`, parts, more))
	conf, err := loadKrb5(path)
	if err != nil {
		t.Fatal(err)
	}
	if conf.LibDefaults.DefaultRealm != "A.EXAMPLE" || conf.LibDefaults.TicketLifetime != 24*time.Hour || conf.LibDefaults.RenewLifetime != 0 {
		t.Errorf("default realm %q, lifetime %v, renewable for %v", conf.LibDefaults.DefaultRealm, conf.LibDefaults.TicketLifetime, conf.LibDefaults.RenewLifetime)
	}
	for realm, want := range map[string]string{"A.EXAMPLE": "a:88", "B.EXAMPLE": "b:88"} {
		if n, kdcs, err := conf.GetKDCs(realm, true); err != nil || n != 1 || kdcs[1] != want {
			t.Errorf("KDCs of %s: %v, %v; want %s", realm, kdcs, err, want)
		}
	}
	if got := conf.ResolveRealm("nn.b.example"); got != "B.EXAMPLE" {
		t.Errorf("nn.b.example is in realm %q", got)
	}
}

// Each thing that an operator gets wrong is an error that says what to look at.
func TestLoginErrors(t *testing.T) {
	dir := t.TempDir()
	good := write(t, filepath.Join(dir, "krb5.conf"), "[libdefaults]\ndefault_realm = R\nudp_preference_limit = 1\n[realms]\nR = {\n kdc = 127.0.0.1:1\n}\n")
	noRealm := write(t, filepath.Join(dir, "norealm.conf"), "[libdefaults]\n[realms]\n")
	loop := write(t, filepath.Join(dir, "loop.conf"), "include "+filepath.Join(dir, "loop.conf")+"\n")
	keys := writeKeytab(t, "spillway", "R")
	damaged := write(t, filepath.Join(dir, "damaged"), "\x05\x02\x00\x00")
	for _, test := range []struct{ principal, keytab, krb5Conf, want string }{
		{"spillway@R", keys, filepath.Join(dir, "none"), "none: no such file"},
		{"spillway@R", keys, loop, "files are included"},
		{"spillway@R", filepath.Join(dir, "none"), good, "read the keytab"},
		{"spillway@R", damaged, good, "read the keytab"},
		{"other@R", keys, good, "no key of other@R; it has those of spillway@R"},
		{"spillway@Q", keys, good, "no key of spillway@Q; it has those of spillway@R"},
		{"spillway/_HOST", keys, good, "no key of spillway/"},
		{"spillway", keys, noRealm, "no default_realm"},
		{"spillway", keys, good, "log in to Kerberos as spillway@R"}, // nobody listens
	} {
		l := New(Config{Principal: test.principal, Keytab: test.keytab, Krb5Conf: test.krb5Conf}, slog.New(slog.DiscardHandler))
		if _, err := l.Get(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test, err)
		}
		l.Close()
	}
}

func FuzzKrb5Conf(f *testing.F) {
	f.Add("[libdefaults]\ndefault_realm = A\n[realms]\nA = {\nkdc = a:88\n}\n[domain_realm]\n.a = A\n")
	f.Add("[realms]\n00=00000{}") // the library panics
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "include") {
			t.Skip("would read files of this machine")
		}
		if conf, err := loadKrb5(write(t, filepath.Join(t.TempDir(), "krb5.conf"), text)); err == nil {
			conf.ResolveRealm("nn.example.com")
		}
	})
}
