package config

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
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
	if !IsAddress(address) {
		k.key(at, "malformed address %q: want host:port", address)
	}
}

// IsAddress returns true for host:port with a host and a port to connect to.
func IsAddress(address string) bool {
	host, port, ok := splitAddress(address)
	return ok && host != "" && port != 0
}

// ports are the two addresses that a service listens on. Port 0 takes any free one.
func (k checker) ports(at, listen, http string) {
	for key, address := range map[string]string{"listen": listen, "http": http} {
		if _, _, ok := splitAddress(address); !ok {
			k.key(join(at, key), "malformed address %q: want :port or host:port", address)
		}
	}
	if samePort(listen, http) {
		k.key(at+".http", "%q is the same port as listen, %q; want another one", http, listen)
	}
}

// samePort says whether two services on one machine could not listen on both addresses. Of
// different names for one machine it knows nothing.
func samePort(a, b string) bool {
	hostA, portA, okA := splitAddress(a)
	hostB, portB, okB := splitAddress(b)
	if !okA || !okB || portA != portB || portA == 0 {
		return false
	}
	if strings.EqualFold(hostA, hostB) {
		return true
	}
	ipsA, ipsB := addressesOf(hostA), addressesOf(hostB)
	for _, x := range ipsA {
		for _, y := range ipsB {
			if x == y || x.IsUnspecified() && (x.Is6() || y.Is4()) || y.IsUnspecified() && (y.Is6() || x.Is4()) {
				return true
			}
		}
	}
	// All interfaces are those of a name, too.
	return len(ipsA) == 0 && hasUnspecified(ipsB) || len(ipsB) == 0 && hasUnspecified(ipsA)
}

// addressesOf are the addresses of a host to listen on, as far as no resolver is needed. "::"
// takes IPv4, too.
func addressesOf(host string) []netip.Addr {
	switch strings.ToLower(host) {
	case "":
		return []netip.Addr{netip.IPv6Unspecified()}
	case "localhost":
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}
	}
	return nil
}

func hasUnspecified(ips []netip.Addr) bool { return slices.ContainsFunc(ips, netip.Addr.IsUnspecified) }
