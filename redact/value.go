package redact

import "reflect"

// Value returns v with every secret in it replaced: strings by [Filtered], other
// values by the zero value of their type (JSON values by 0, false or null), so
// that the result decodes into what v did. An empty string is replaced too: that
// it is empty says something about it. A secret is what is held by a struct
// field or a map key whose name matches; for a field both its Go name and the
// name in its json tag count. The struct tag redact:"true" marks a field whatever
// its name is, and redact:"false" exempts it, though not what is inside it.
//
// v is not changed. Parts without secrets are shared with the result, and if
// there is none at all v itself is returned.
func (f *Filter) Value(v any) any {
	root := reflect.ValueOf(v)
	if !root.IsValid() || !f.mayHold(root.Type()) {
		return v
	}
	s := scanner{f: f}
	s.scan(root, 0)
	s.propagate()
	if !s.dirty[0] {
		return v
	}
	c := copier{f: f, scan: &s, done: map[ref]reflect.Value{}}
	return c.copy(root).Interface()
}

// ref is the identity of what is shared by reference: the type too, since a
// struct and its first field are in the same place; the length, since slices of
// one array differ by it.
type ref struct {
	at  uintptr
	len int
	t   reflect.Type
}

func refOf(v reflect.Value) ref {
	r := ref{at: v.Pointer(), t: v.Type()}
	if v.Kind() == reflect.Slice {
		r.len = v.Len()
	}
	return r
}

// scanner finds the references through which a secret is reached. Node 0 is what
// is reached through none.
type scanner struct {
	f       *Filter
	node    map[ref]int
	holders [][]int // by node: those that hold it
	dirty   map[int]bool
}

// found marks a node that has a secret of its own.
func (s *scanner) found(node int) {
	if s.dirty == nil {
		s.dirty = map[int]bool{}
	}
	s.dirty[node] = true
}

// propagate marks who holds what is marked, until nothing is new: what is held in
// a cycle is not known while the cycle is scanned.
func (s *scanner) propagate() {
	var todo []int
	for n := range s.dirty {
		todo = append(todo, n)
	}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if n >= len(s.holders) {
			continue
		}
		for _, h := range s.holders[n] {
			if !s.dirty[h] {
				s.dirty[h] = true
				todo = append(todo, h)
			}
		}
	}
}

// enter returns the node of a reference that holder has, and whether it is new.
func (s *scanner) enter(v reflect.Value, holder int) (node int, fresh bool) {
	if s.node == nil {
		s.node, s.holders = map[ref]int{}, make([][]int, 1)
	}
	r := refOf(v)
	node, known := s.node[r]
	if !known {
		node = len(s.holders)
		s.node[r] = node
		s.holders = append(s.holders, nil)
	}
	s.holders[node] = append(s.holders[node], holder)
	return node, !known
}

func (s *scanner) scan(v reflect.Value, holder int) {
	if !s.f.mayHold(v.Type()) {
		return
	}
	switch v.Kind() {
	case reflect.Interface:
		if !v.IsNil() {
			s.scan(v.Elem(), holder)
		}
	case reflect.Struct:
		for _, fd := range s.f.plan(v.Type()).fields {
			s.held(v.Field(fd.index), fd.mask, holder)
		}
	case reflect.Array:
		for i := range v.Len() {
			s.scan(v.Index(i), holder)
		}
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if v.IsNil() {
			return
		}
		if node, fresh := s.enter(v, holder); fresh {
			s.inside(v, node)
		}
	}
}

// inside scans what a reference leads to.
func (s *scanner) inside(v reflect.Value, node int) {
	switch v.Kind() {
	case reflect.Pointer:
		s.scan(v.Elem(), node)
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			s.held(it.Value(), s.f.secret(keyName(it.Key())), node)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			if _, changed := s.f.json(v.Bytes()); changed {
				s.found(node)
			}
			return
		}
		for i := range v.Len() {
			s.scan(v.Index(i), node)
		}
	}
}

// held scans what a field or key holds.
func (s *scanner) held(v reflect.Value, secret bool, holder int) {
	if !secret {
		s.scan(v, holder)
	} else if _, changed := masked(v); changed {
		s.found(holder)
	}
}

// copier copies the references that were found, each once, and shares the others.
type copier struct {
	f    *Filter
	scan *scanner
	done map[ref]reflect.Value
}

func (c *copier) copy(v reflect.Value) reflect.Value {
	if !c.f.mayHold(v.Type()) {
		return v
	}
	switch v.Kind() {
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		out := reflect.New(v.Type()).Elem()
		out.Set(c.copy(v.Elem()))
		return out
	case reflect.Struct:
		return c.structure(v)
	case reflect.Array:
		out := reflect.New(v.Type()).Elem()
		for i := range v.Len() {
			out.Index(i).Set(c.copy(v.Index(i)))
		}
		return out
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if v.IsNil() {
			return v
		}
		return c.reference(v)
	}
	return v
}

func (c *copier) structure(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	out.Set(v)
	for _, fd := range c.f.plan(v.Type()).fields {
		to := open(out.Field(fd.index))
		to.Set(c.held(to, fd.mask))
	}
	return out
}

// open makes an embedded struct of an unexported type settable, which the
// language does not forbid to its exported fields.
func open(field reflect.Value) reflect.Value {
	if field.CanSet() {
		return field
	}
	return reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem()
}

func (c *copier) held(v reflect.Value, secret bool) reflect.Value {
	if !secret {
		return c.copy(v)
	}
	out, _ := masked(v)
	return out
}

// reference copies what v refers to. The copy is known before what is in it is
// copied, which may lead back here.
func (c *copier) reference(v reflect.Value) reflect.Value {
	r := refOf(v)
	if !c.scan.dirty[c.scan.node[r]] {
		return v
	}
	if out, ok := c.done[r]; ok {
		return out
	}
	t := v.Type()
	out := reflect.New(t).Elem()
	switch v.Kind() {
	case reflect.Pointer:
		out.Set(reflect.New(t.Elem()).Convert(t))
		c.done[r] = out
		out.Elem().Set(c.copy(v.Elem()))
	case reflect.Map:
		out.Set(reflect.MakeMapWithSize(t, v.Len()))
		c.done[r] = out
		for it := v.MapRange(); it.Next(); {
			out.SetMapIndex(it.Key(), c.held(it.Value(), c.f.secret(keyName(it.Key()))))
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			data, _ := c.f.json(v.Bytes())
			out.SetBytes(data)
			return out
		}
		out.Set(reflect.MakeSlice(t, v.Len(), v.Len()))
		c.done[r] = out
		for i := range v.Len() {
			out.Index(i).Set(c.copy(v.Index(i)))
		}
	}
	return out
}
