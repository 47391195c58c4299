// Words counts the words of its standard input: what scripts/try compiles and
// runs where there is no C compiler.
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

func main() {
	counts := map[string]int{}
	in := bufio.NewScanner(os.Stdin)
	in.Split(bufio.ScanWords)
	for in.Scan() {
		counts[strings.ToLower(strings.Trim(in.Text(), ".,:;()`*#"))]++
	}
	words := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for _, w := range words[:min(5, len(words))] {
		fmt.Printf("%-12s %5d\n", w, counts[w])
	}
	fmt.Println(len(words), "different words")
}
