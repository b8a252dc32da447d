package kafkaclient

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"
	"github.com/segmentio/kafka-go/sasl"

	"github.com/spillwayio/spillway/services/internal/config"
)

func sessionKey(fill byte) types.EncryptionKey {
	return types.EncryptionKey{KeyType: etypeID.AES256_CTS_HMAC_SHA1_96, KeyValue: []byte(strings.Repeat(string(fill), 32))}
}

// offer is what a broker sends.
func offer(t testing.TB, payload []byte, key types.EncryptionKey, change func(*gssapi.WrapToken)) []byte {
	t.Helper()
	token := gssapi.WrapToken{Flags: 1, EC: 12, Payload: payload}
	if err := token.SetCheckSum(key, keyusage.GSSAPI_ACCEPTOR_SEAL); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&token)
	}
	b, err := token.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGSSAPIExchange: an offer with the right key is answered with "no layer"; all else is refused
// with its reason, and the tickets are suspected where they may be why.
func TestGSSAPIExchange(t *testing.T) {
	key := sessionKey('k')
	all := []byte{7, 0, 255, 255}
	for name, test := range map[string]struct {
		challenge []byte
		want      string
		suspect   bool
	}{
		"no layer offered":   {offer(t, all, key, nil), "", false},
		"only layers":        {offer(t, []byte{6, 0, 1, 0}, key, nil), "security layer", false},
		"short offer":        {offer(t, []byte{7}, key, nil), "security layer", false},
		"another key":        {offer(t, all, sessionKey('x'), nil), "not the service", true},
		"changed on the way": {offer(t, all, key, func(w *gssapi.WrapToken) { w.Payload = []byte{1, 0, 255, 255} }), "not the service", true},
		"our own, reflected": {offer(t, all, key, func(w *gssapi.WrapToken) { w.Flags = 0 }), "acceptor flag", true},
		"sealed":             {offer(t, all, key, func(w *gssapi.WrapToken) { w.Flags |= sealedFlag }), "encrypted", true},
		"rotated":            {offer(t, all, key, func(w *gssapi.WrapToken) { w.RRC = 4 }), "rotated", true},
		"long checksum":      {offer(t, all, key, func(w *gssapi.WrapToken) { w.EC = 12; w.CheckSum = w.CheckSum[:3] }), "not the service", true},
		"nothing":            {nil, "shorter", true},
		"huge":               {make([]byte, maxWrapToken+1), "bytes", true},
	} {
		suspect := false
		x := &gssapiExchange{key: key, suspect: func() { suspect = true }}
		done, response, err := x.Next(t.Context(), test.challenge)
		if suspect != test.suspect {
			t.Errorf("%s: the tickets are suspected: %v", name, suspect)
		}
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) || done || response != nil {
				t.Errorf("%s: %v, %x, %v; want %q", name, done, response, err, test.want)
			}
			continue
		}
		var token gssapi.WrapToken
		if err != nil || done {
			t.Fatalf("%s: %v, %v", name, done, err)
		}
		if err := token.Unmarshal(response, false); err != nil || string(token.Payload) != "\x01\x00\x00\x00" {
			t.Errorf("%s: answered %x, %v", name, response, err)
		}
		if ok, err := token.Verify(key, keyusage.GSSAPI_INITIATOR_SEAL); !ok || err != nil {
			t.Errorf("%s: the answer's checksum: %v", name, err)
		}
		if done, _, err := x.Next(t.Context(), nil); !done || err != nil {
			t.Errorf("%s: the end: %v, %v", name, done, err)
		}
		if _, _, err := x.Next(t.Context(), []byte("more")); err == nil {
			t.Errorf("%s: something after the end passed", name)
		}
	}
}

func FuzzGSSAPIExchange(f *testing.F) {
	f.Add(offer(f, []byte{7, 0, 255, 255}, sessionKey('k'), nil))
	f.Add([]byte("\x60\x20\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x03\x00\x7e"))
	f.Fuzz(func(t *testing.T, challenge []byte) {
		x := &gssapiExchange{key: sessionKey('k'), suspect: func() {}}
		_, _, _ = x.Next(t.Context(), challenge) // must not panic
	})
}

// TestGSSAPIWithoutTickets: a login that fails names what to look at, before any broker hears
// anything of it.
func TestGSSAPIWithoutTickets(t *testing.T) {
	dir := t.TempDir()
	keys := keytab.New()
	if err := keys.AddEntry("spillway", "R", "secret", time.Unix(1, 0), 1, etypeID.AES256_CTS_HMAC_SHA1_96); err != nil {
		t.Fatal(err)
	}
	data, err := keys.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	krb5 := file("krb5.conf", []byte("[libdefaults]\ndefault_realm = R\nudp_preference_limit = 1\n[realms]\nR = {\n kdc = 127.0.0.1:1\n}\n"))
	for want, s := range map[string]config.SASL{
		"log in to Kerberos as spillway@R": {Principal: "spillway", Keytab: file("keytab", data), Krb5Conf: krb5},
		"no key of other@R":                {Principal: "other", Keytab: file("keytab", data), Krb5Conf: krb5},
		"read the keytab":                  {Principal: "spillway", Keytab: dir + "/none", Krb5Conf: krb5},
		"read krb5.conf":                   {Principal: "spillway", Keytab: file("keytab", data), Krb5Conf: dir + "/none"},
	} {
		s.Mechanism, s.ServiceName = "GSSAPI", "kafka"
		access, err := NewAccess(nil, &s, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = access.mechanism.Start(sasl.WithMetadata(t.Context(), &sasl.Metadata{Host: "kafka", Port: 9092}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
		access.Close()
	}
}
