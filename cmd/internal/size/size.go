// Package size has the numbers of bytes that users write, on command lines and in
// configuration files.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes, 0 or more. As a flag it is what Parse takes.
type Bytes int64

// Units says in the help of flags what the units of Parse mean.
const Units = "K, M, G, T, also with iB, are powers of 1024; KB, MB, ... of 1000"

const units = "KMGTPE"

// Parse returns the bytes of a number with a unit: K, M, G, T, P and E, alone or with i or
// iB behind them, are powers of 1024; KB, MB and so on are powers of 1000; without a unit,
// or with B, it is bytes. The number may have a decimal point, a space may follow it, and
// the case does not matter. What does not fit into 63 bits is an error.
func Parse(text string) (Bytes, error) {
	unit := strings.TrimLeft(text, "0123456789.")
	n, err := strconv.ParseFloat(text[:len(text)-len(unit)], 64)
	factor, ok := unitBytes(strings.ToUpper(strings.TrimPrefix(unit, " ")))
	if err != nil || !ok || n*factor >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is no size: give a number and a unit, as 512M or 1GiB", text)
	}
	return Bytes(n * factor), nil
}

// unitBytes returns the bytes of a unit in upper case.
func unitBytes(unit string) (factor float64, ok bool) {
	if unit == "" || unit == "B" {
		return 1, true
	}
	power := strings.Index(units, unit[:1]) + 1
	base := 1024.0
	switch unit[1:] {
	case "", "I", "IB":
	case "B":
		base = 1000
	default:
		return 0, false
	}
	return math.Pow(base, float64(power)), power > 0
}

// String implements pflag.Value.
func (b *Bytes) String() string {
	n, unit := int64(*b), 0
	for n != 0 && n%1024 == 0 && unit < len(units) {
		n, unit = n/1024, unit+1
	}
	text := strconv.FormatInt(n, 10)
	if unit > 0 {
		text += units[unit-1:unit] + "iB"
	}
	return text
}

// Set implements pflag.Value.
func (b *Bytes) Set(text string) (err error) {
	*b, err = Parse(text)
	return err
}

// Type implements pflag.Value.
func (b *Bytes) Type() string { return "size" }
