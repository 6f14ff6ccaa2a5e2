package fs

import (
	"fmt"
	"testing"
)

func TestPaths(t *testing.T) {
	table := newPaths(100)
	root, err := table.root(rootNode)
	if err != nil {
		t.Fatal(err)
	}
	other, err := table.root(sourceNode("web1"))
	if err != nil || other.node == root.node || root.path() != "." {
		t.Fatalf("two roots: %+v, %+v, %v", root, other, err)
	}
	child := func(p *pathNode, name string) *pathNode {
		t.Helper()
		c, err := table.child(p, name)
		if err != nil || !isPathNode(c.node) || c.listing != p.listing {
			t.Fatalf("child %q: %+v, %v", name, c, err)
		}
		return c
	}
	etc := child(root, "etc")
	passwd := child(etc, "passwd")
	if got := passwd.path(); got != "etc/passwd" {
		t.Errorf("path %q", got)
	}
	for n := range 1000 {
		child(etc, fmt.Sprint(n))
		if len(table.nodes) > 100 || table.recent.Len() != len(table.nodes) {
			t.Fatalf("%d nodes are remembered, %d in order", len(table.nodes), table.recent.Len())
		}
	}
	if table.get(passwd.node) != nil || table.get(other.node) != nil {
		t.Error("what was not used for long is still there")
	}
	if table.get(root.node) != root || table.get(etc.node) != etc {
		t.Error("directories above what is used were forgotten")
	}
	if again := child(etc, "passwd"); again.node != passwd.node {
		t.Errorf("node %x, it was %x", again.node, passwd.node)
	}
	table.nodes[table.hash(etc.node, "taken")] = passwd
	if p, err := table.child(etc, "taken"); err == nil {
		t.Errorf("two paths share a node: %+v", p)
	}
}
