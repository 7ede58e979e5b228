package supervisor

import (
	"fmt"
	"os"
)

// measure fills in the resident memory of workers.
func measure(workers []WorkerStatus) {
	for i := range workers {
		var size, resident int64
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", workers[i].PID))
		if err != nil {
			continue // it has ended
		}
		if _, err := fmt.Sscan(string(text), &size, &resident); err == nil {
			workers[i].Memory = resident * int64(os.Getpagesize())
		}
	}
}
