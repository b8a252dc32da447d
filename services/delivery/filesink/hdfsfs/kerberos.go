package hdfsfs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/colinmarc/hdfs/v2"
	krb "github.com/jcmturner/gokrb5/v8/client"
	krbconfig "github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"

	"github.com/spillwayio/spillway/services/internal/config"
)

// login is a principal and its keytab. The Kerberos library logs in again by itself before its tickets expire, with
// the keys it has; login replaces it when the keytab changed, and when a NameNode did not take its tickets.
type login struct {
	conf         config.Kerberos
	serviceRealm string   // of the NameNodes; empty is krb5.conf's business
	hosts        []string // the NameNodes' by which their realm is looked for
	log          *slog.Logger

	mu      sync.Mutex
	current *tickets // nil before the first login
	failing bool     // the last attempt to replace current failed
}

// tickets are what one login yielded. They are used by several clients, as long as those live: a client
// authenticates again when it connects again.
type tickets struct {
	client  *krb.Client
	keytab  os.FileInfo // as it was read
	users   int         // clients, and login while current
	suspect bool        // a NameNode did not take them
}

// newLogin adds what the library must know of the NameNodes to options.
func newLogin(k config.Kerberos, options *hdfs.ClientOptions, servicePrincipal string) (*login, error) {
	if k.ServicePrincipal != "" {
		servicePrincipal = k.ServicePrincipal
	}
	if servicePrincipal == "" {
		return nil, errors.New("hdfs.kerberos.service_principal is missing, and conf_dir has no dfs.namenode.kerberos.principal; want nn/_HOST@REALM")
	}
	l := &login{conf: k}
	options.KerberosServicePrincipleName, l.serviceRealm, _ = strings.Cut(servicePrincipal, "@")
	for _, address := range options.Addresses {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("NameNode %q: %w", address, err)
		}
		l.hosts = append(l.hosts, host)
	}
	if _, host, _ := strings.Cut(options.KerberosServicePrincipleName, "/"); host != "_HOST" {
		l.hosts = []string{host}
	}
	return l, nil
}

// get returns tickets to be released, having logged in when that was needed. When that failed and there are older ones,
// those are returned with the error: they may be good yet.
func (l *login) get() (*tickets, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.current == nil || l.current.suspect || l.current.changed(l.conf.Keytab) {
		var t *tickets
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

// changed says whether the keytab is another file than it was. One that is away for the moment has not changed.
func (t *tickets) changed(path string) bool {
	now, err := os.Stat(path)
	return err == nil && (!now.ModTime().Equal(t.keytab.ModTime()) || now.Size() != t.keytab.Size())
}

// suspect has the next get log in again.
func (l *login) suspect(t *tickets) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.suspect = true
}

func (l *login) release(t *tickets) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseLocked(t)
}

// releaseLocked ends the library's renewing with the last user.
func (l *login) releaseLocked(t *tickets) {
	if t.users--; t.users == 0 {
		t.client.Destroy()
	}
}

// drop lets go of the current tickets. It needs the lock.
func (l *login) drop() {
	if l.current != nil {
		l.releaseLocked(l.current)
		l.current = nil
	}
}

func (l *login) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
}

// login reads the files and asks the KDC.
func (l *login) login() (*tickets, error) {
	conf, err := loadKrb5(l.conf.Krb5Conf)
	if err != nil {
		return nil, err
	}
	name, realm, err := principalOf(l.conf.Principal, conf)
	if err != nil {
		return nil, err
	}
	for _, host := range l.hosts {
		if l.serviceRealm != "" {
			conf.DomainRealm[host] = l.serviceRealm
		}
	}
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
	return &tickets{client: client, keytab: info, users: 1}, nil
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

// hasKey tells a keytab that was made for somebody else from a KDC that does not know the principal.
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

// notRenewable has the library log in with the keytab where it would renew a ticket: it goes on trying to renew
// one that has expired meanwhile, which no KDC does.
func notRenewable(conf *krbconfig.Config) {
	conf.LibDefaults.RenewLifetime = 0
	types.UnsetFlag(&conf.LibDefaults.KDCDefaultOptions, flags.Renewable)
	types.UnsetFlag(&conf.LibDefaults.KDCDefaultOptions, flags.RenewableOK)
}
