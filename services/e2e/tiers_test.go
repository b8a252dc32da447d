package e2e

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// tierEnv chooses the tests when -run does not: empty for all but the soak tests, quick, or soak.
const tierEnv = "E2E_TIER"

// quickTests are the ten most telling ones, for make test-quick.
var quickTests = []string{
	"TestEverythingArrivesOnce",
	"TestEachProcessKilled",
	"TestTargetKafkaDies",
	"TestAReplicaAdopts",
	"TestBufferIsReadyAgainAfterSIGKILL",
	"TestBrokerComesBack",
	"TestAdmin",
	"TestTopicsThatAreDenied",
	"TestHadoopReadsFormats",
	"TestBufferIsAwayWithALag",
}

// soakTests take long, or repeat with more chaos what a shorter test shows. They run with make
// soak.
var soakTests = []string{
	"TestReplicasAreKilledAndSleep",
	"TestFormatsSurviveKills",
	"TestEachPeerDies",
	"TestHDFSKilled",
	"TestNameNodeFailover/kerberos",
	"TestStoppedLeader",
	"TestKafkaStoreLosesNothing",
	"TestKafkaStoreConforms",
	"TestKafkaStoreCost",
	"TestKafkaStoreSpeed",
	"TestHeldFiles/manyFilesOfADeadDataNode",
	"TestHostileClient",
	"TestHeldFilesInTrouble/snapshot",
	"TestHeldFilesInTrouble/transferThreads",
	"TestHeldFilesInTrouble/idleLong",
	"TestFlumeBesideSpillway",
	"TestBlockTokens",
	"TestHeldFilesSurviveKills",
	"TestPowerCut",
	"TestDeliveryIsCutOff",
	"TestShardsAreKilledAgainAndAgain",
	"TestAGroupLosesNothing",
	"TestClusterChaos",
	"TestJournalIsSlowAndAway",
	"TestOneLeaderIsOutOfReach",
	"TestDeliveriesOfAZombie",
	"TestBuffersTakeOverByThemselves",
	"TestBuffersWithDifferentFiles",
	"TestKeptInKafkaLosesNothing",
	"TestSourceForgetsWhatIsDeferred",
	"TestSourceForgetsInManyWays",
	"TestAQueueMovesWithItsBacklog",
	"TestWithoutTheLedger",
}

// chooseTests sets -test.run and -test.skip for the tier, and says what is left out. Tests that
// are named run whatever their tier, but for those that .ci/gotest runs again in the tier
// "default".
func chooseTests() error {
	flag.Parse()
	tier := os.Getenv(tierEnv)
	if flag.Lookup("test.run").Value.String() != "" && tier != "default" {
		return nil
	}
	switch tier {
	case "", "default":
		fmt.Fprintf(os.Stderr, "left to make soak: %s\n", strings.Join(soakTests, ", "))
		if flag.Lookup("test.skip").Value.String() != "" {
			return nil
		}
		return flag.Set("test.skip", pattern(soakTests))
	case "quick":
		return flag.Set("test.run", pattern(quickTests))
	case "soak":
		return flag.Set("test.run", pattern(soakTests))
	}
	return fmt.Errorf("%s=%q: want quick, soak, default or nothing", tierEnv, tier)
}

// pattern matches the names exactly, and their subtests. A name may have a subtest behind a slash.
func pattern(names []string) string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = "^" + strings.ReplaceAll(n, "/", "$/^") + "$"
	}
	return strings.Join(all, "|")
}

// TestTiers holds that the tiers name tests that are there.
func TestTiers(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	function := regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	var there []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		text, err := os.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			there = append(there, m[1])
		}
	}
	for _, n := range slices.Concat(quickTests, soakTests) {
		if name, _, _ := strings.Cut(n, "/"); !slices.Contains(there, name) {
			t.Errorf("there is no test %s", name)
		}
	}
	for _, n := range quickTests {
		if slices.Contains(soakTests, n) {
			t.Errorf("%s is in both tiers", n)
		}
	}
}
