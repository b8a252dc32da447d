package hdfsfs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kerberos"
)

// newLogin adds what the library must know of the NameNodes to options.
func newLogin(k config.Kerberos, options *hdfs.ClientOptions, servicePrincipal string, log *slog.Logger) (*kerberos.Login, error) {
	realms, err := nameNodeRealms(k, options, servicePrincipal)
	if err != nil {
		return nil, err
	}
	return kerberos.New(kerberos.Config{Principal: k.Principal, Keytab: k.Keytab, Krb5Conf: k.Krb5Conf, Realms: realms}, log), nil
}

// nameNodeRealms sets the NameNodes' principal in options, and returns the realm of each host by
// which the library looks for theirs; an empty map leaves that to krb5.conf.
func nameNodeRealms(k config.Kerberos, options *hdfs.ClientOptions, servicePrincipal string) (map[string]string, error) {
	if k.ServicePrincipal != "" {
		servicePrincipal = k.ServicePrincipal
	}
	if servicePrincipal == "" {
		return nil, errors.New("hdfs.kerberos.service_principal is missing, and conf_dir has no dfs.namenode.kerberos.principal; want nn/_HOST@REALM")
	}
	name, realm, _ := strings.Cut(servicePrincipal, "@")
	options.KerberosServicePrincipleName = name
	realms := make(map[string]string)
	for _, address := range options.Addresses {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("NameNode %q: %w", address, err)
		}
		realms[host] = realm
	}
	if _, host, _ := strings.Cut(name, "/"); host != "_HOST" {
		realms = map[string]string{host: realm}
	}
	if realm == "" {
		clear(realms)
	}
	return realms, nil
}
