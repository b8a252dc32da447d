// Package kerberos logs in with the key of a keytab, and keeps tickets that are good: the library
// renews them before they expire, and a new login follows when the keytab changed or a service did
// not take them.
//
// A Login that logged in has one goroutine of the library's; Close ends it.
package kerberos

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	krb "github.com/jcmturner/gokrb5/v8/client"
	krbconfig "github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"
)

// Config names who logs in, and the files it takes. They are read again for each login.
type Config struct {
	// Principal is name@REALM or name/host@REALM; _HOST is this machine's full name, and the
	// realm may be left to Krb5Conf.
	Principal string
	Keytab    string
	Krb5Conf  string
	// Realms has the realm of hosts of services, where it is not krb5.conf's business.
	Realms map[string]string
}

// Login is a principal and its keytab. Its methods may be called concurrently. Close it at the
// end.
type Login struct {
	conf Config
	log  *slog.Logger

	mu      sync.Mutex
	current *Tickets // nil before the first login
	failing bool     // the last attempt to replace current failed
}

// Tickets are what one login yielded. Several users have them at a time; each gives them back to
// Login.Release.
type Tickets struct {
	Client *krb.Client // it asks for tickets of services, and keeps them

	keytab  os.FileInfo // as it was read
	users   int         // and login while current
	suspect bool        // a service did not take them
}

// New returns a Login that has read no file and asked nobody yet.
func New(conf Config, log *slog.Logger) *Login { return &Login{conf: conf, log: log} }

// Get returns tickets to be released, having logged in when that was needed. When that failed and
// there are older ones, those are returned with the error: they may be good yet.
func (l *Login) Get() (*Tickets, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.current == nil || l.current.suspect || l.current.changed(l.conf.Keytab) {
		var t *Tickets
		if t, err = l.login(); err == nil {
			l.drop()
			l.current = t
		} else if l.current != nil && !l.failing {
			l.log.Warn("the login to Kerberos failed; going on with older tickets as long as they are valid", "error", err)
		}
		l.failing = err != nil
	}
	if l.current == nil {
		return nil, err
	}
	l.current.users++
	return l.current, err
}

// changed says whether the keytab is another file than it was. One that is away for the moment
// has not changed.
func (t *Tickets) changed(path string) bool {
	now, err := os.Stat(path)
	return err == nil && (!now.ModTime().Equal(t.keytab.ModTime()) || now.Size() != t.keytab.Size())
}

// Suspect makes the next Get log in again, since a service did not take the tickets.
func (l *Login) Suspect(t *Tickets) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.suspect = true
}

// Release gives tickets back.
func (l *Login) Release(t *Tickets) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseLocked(t)
}

// releaseLocked ends the library's renewing with the last user.
func (l *Login) releaseLocked(t *Tickets) {
	if t.users--; t.users == 0 {
		t.Client.Destroy()
	}
}

// drop lets go of the current tickets. It needs the lock.
func (l *Login) drop() {
	if l.current != nil {
		l.releaseLocked(l.current)
		l.current = nil
	}
}

// Close lets go of the tickets. Those that are in use stay good until they are released.
func (l *Login) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
}

// login reads the files and asks the KDC.
func (l *Login) login() (*Tickets, error) {
	conf, err := loadKrb5(l.conf.Krb5Conf)
	if err != nil {
		return nil, err
	}
	name, realm, err := principalOf(l.conf.Principal, conf)
	if err != nil {
		return nil, err
	}
	maps.Copy(conf.DomainRealm, l.conf.Realms)
	info, err := os.Stat(l.conf.Keytab)
	if err != nil {
		return nil, fmt.Errorf("read the keytab: %w", err)
	}
	keys, err := keytab.Load(l.conf.Keytab)
	if err != nil {
		return nil, fmt.Errorf("read the keytab %s: %w", l.conf.Keytab, err)
	}
	if err := hasKey(keys, name, realm); err != nil {
		return nil, fmt.Errorf("keytab %s: %w", l.conf.Keytab, err)
	}
	// Not all KDCs know FAST, and the library cannot tell.
	client := krb.NewWithKeytab(name, realm, keys, conf, krb.DisablePAFXFAST(true))
	if err := client.Login(); err != nil {
		return nil, fmt.Errorf("log in to Kerberos as %s@%s: %w", name, realm, err)
	}
	return &Tickets{Client: client, keytab: info, users: 1}, nil
}

// principalOf takes name@REALM apart and completes it.
func principalOf(principal string, conf *krbconfig.Config) (name, realm string, err error) {
	name, realm, _ = strings.Cut(principal, "@")
	if realm == "" {
		realm = conf.LibDefaults.DefaultRealm
	}
	if realm == "" {
		return "", "", fmt.Errorf("principal %s has no realm, and krb5.conf has no default_realm", principal)
	}
	if service, host, _ := strings.Cut(name, "/"); host == "_HOST" {
		if host, err = os.Hostname(); err != nil {
			return "", "", fmt.Errorf("find this machine's name for principal %s: %w", principal, err)
		}
		if canonical, err := net.LookupCNAME(host); err == nil {
			host = strings.TrimSuffix(canonical, ".")
		}
		name = service + "/" + strings.ToLower(host)
	}
	return name, realm, nil
}

// hasKey tells a keytab that was made for somebody else from a KDC that does not know the
// principal.
func hasKey(keys *keytab.Keytab, name, realm string) error {
	var has []string
	for _, e := range keys.Entries {
		p := strings.Join(e.Principal.Components, "/") + "@" + e.Principal.Realm
		if p == name+"@"+realm {
			return nil
		}
		if !slices.Contains(has, p) {
			has = append(has, p)
		}
	}
	return fmt.Errorf("no key of %s@%s; it has those of %s", name, realm, strings.Join(has, ", "))
}

// notRenewable has the library log in with the keytab where it would renew a ticket: it goes on
// trying to renew one that has expired meanwhile, which no KDC does.
func notRenewable(conf *krbconfig.Config) {
	conf.LibDefaults.RenewLifetime = 0
	types.UnsetFlag(&conf.LibDefaults.KDCDefaultOptions, flags.Renewable)
	types.UnsetFlag(&conf.LibDefaults.KDCDefaultOptions, flags.RenewableOK)
}
