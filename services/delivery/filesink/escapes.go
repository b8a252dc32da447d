package filesink

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// formatTime is what %letter yields, as in Flume; %Z, which yields nothing there, is the zone's
// name.
func formatTime(letter byte, t time.Time) string {
	switch letter {
	case 'a':
		return t.Format("Mon")
	case 'A':
		return t.Format("Monday")
	case 'b':
		return t.Format("Jan")
	case 'B':
		return t.Format("January")
	case 'c':
		return t.Format("Mon Jan 2 15:04:05 2006")
	case 'd':
		return t.Format("02")
	case 'D':
		return t.Format("01/02/06")
	case 'e':
		return t.Format("2")
	case 'H':
		return t.Format("15")
	case 'I':
		return t.Format("03")
	case 'j':
		return t.Format("002")
	case 'k':
		return strconv.Itoa(t.Hour())
	case 'l':
		return t.Format("3")
	case 'm':
		return t.Format("01")
	case 'M':
		return t.Format("04")
	case 'n':
		return t.Format("1")
	case 'p':
		return t.Format("PM")
	case 's':
		return strconv.FormatInt(t.Unix(), 10)
	case 'S':
		return t.Format("05")
	case 't':
		return strconv.FormatInt(t.UnixMilli(), 10)
	case 'y':
		return t.Format("06")
	case 'Y':
		return t.Format("2006")
	case 'z':
		return t.Format("-0700")
	default: // 'Z', the last that compile lets through
		return t.Format("MST")
	}
}

// lookupHost is what %[what] yields on this machine.
func lookupHost(what string) (string, error) {
	what = strings.ToLower(what)
	switch what {
	case "localhost", "ip", "fqdn":
	default:
		return "", fmt.Errorf("unknown; want %%[localhost], %%[IP] or %%[FQDN]")
	}
	name, err := os.Hostname()
	if err != nil || what == "localhost" {
		return name, err
	}
	addrs, err := net.LookupHost(name)
	if err != nil {
		return "", fmt.Errorf("look up this machine's address: %w", err)
	}
	if what == "ip" {
		return addrs[0], nil
	}
	names, err := net.LookupAddr(addrs[0])
	if err != nil || len(names) == 0 {
		return name, nil // as Java does
	}
	return strings.TrimSuffix(names[0], "."), nil
}
