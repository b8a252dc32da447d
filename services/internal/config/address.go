package config

import (
	"net"
	"regexp"
	"strconv"
)

// hostName is a DNS name or an IPv4 or IPv6 address.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_.:%-]+$`)

// splitAddress takes host:port apart and says whether it is one. The host may be empty.
func splitAddress(address string) (host string, port int, ok bool) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil || host != "" && !hostName.MatchString(host) {
		return "", 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 16)
	return host, int(number), err == nil
}

func (k checker) addresses(at string, addresses []string) {
	k.list(at, addresses, k.address)
}

// address is of something to connect to.
func (k checker) address(at, address string) {
	if host, port, ok := splitAddress(address); !ok || host == "" || port == 0 {
		k.key(at, "malformed address %q: want host:port", address)
	}
}

// ports are the two addresses that a service listens on. Port 0 takes any free one.
func (k checker) ports(at, listen, http string) {
	for key, address := range map[string]string{"listen": listen, "http": http} {
		if _, _, ok := splitAddress(address); !ok {
			k.key(join(at, key), "malformed address %q: want :port or host:port", address)
		}
	}
	if _, port, _ := splitAddress(http); listen == http && port != 0 {
		k.key(at+".http", "is the same address as listen, %s", listen)
	}
}
