package redact

import (
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
)

// structPlan is what there is to do to a struct of one type.
type structPlan struct{ fields []field }

// field is one that may hold a secret; the others are none of our business.
type field struct {
	index int
	mask  bool // the field itself is a secret
}

// plan finds out about a struct type, once.
func (f *Filter) plan(t reflect.Type) *structPlan {
	if p, ok := f.types.Load(planKey{t}); ok {
		return p.(*structPlan)
	}
	p := &structPlan{}
	for i := range t.NumField() {
		sf := t.Field(i)
		if !visible(sf) {
			continue
		}
		if mask := f.masks(sf); mask || f.mayHold(sf.Type) {
			p.fields = append(p.fields, field{i, mask})
		}
	}
	f.types.Store(planKey{t}, p)
	return p
}

type planKey struct{ t reflect.Type }

// visible: encoding/json too sees the exported fields of an unexported embedded
// struct.
func visible(sf reflect.StructField) bool {
	return sf.IsExported() || inlined(sf)
}

// inlined: the fields of an embedded struct appear as the outer one's, and its
// own name does not.
func inlined(sf reflect.StructField) bool {
	t := sf.Type
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return sf.Anonymous && t.Kind() == reflect.Struct && jsonName(sf) == ""
}

func jsonName(sf reflect.StructField) string {
	tag := sf.Tag.Get("json")
	if tag == "-" {
		return ""
	}
	name, _, _ := strings.Cut(tag, ",")
	return name
}

// masks reports whether the field's tag or one of its names says that it is a
// secret.
func (f *Filter) masks(sf reflect.StructField) bool {
	if !sf.IsExported() {
		return false
	}
	switch sf.Tag.Get("redact") {
	case "true":
		return true
	case "false":
		return false
	}
	return f.secret(jsonName(sf)) || !inlined(sf) && f.secret(sf.Name)
}

// mayHold reports whether there may be a secret somewhere in a value of the type.
func (f *Filter) mayHold(t reflect.Type) bool {
	if may, ok := f.types.Load(t); ok {
		return may.(bool)
	}
	may := f.looksInto(t, map[reflect.Type]bool{})
	f.types.Store(t, may)
	return may
}

// looksInto is mayHold; a type that is being looked at adds nothing to itself.
// What was found on the way must not be remembered: it left that type out.
func (f *Filter) looksInto(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return false
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Interface:
		return true
	case reflect.Map:
		return named(t.Key()) || f.looksInto(t.Elem(), seen)
	case reflect.Slice:
		return t.Elem().Kind() == reflect.Uint8 || f.looksInto(t.Elem(), seen)
	case reflect.Array, reflect.Pointer:
		return f.looksInto(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if sf := t.Field(i); visible(sf) && (f.masks(sf) || f.looksInto(sf.Type, seen)) {
				return true
			}
		}
	}
	return false
}

var (
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	jsonNumber    = reflect.TypeFor[json.Number]()
)

// named reports whether keys of the type may be names.
func named(key reflect.Type) bool {
	return key.Kind() == reflect.String || key.Kind() == reflect.Interface || key.Implements(textMarshaler)
}

// keyName is the name that a map key is in JSON; empty if it has none.
func keyName(k reflect.Value) string {
	if k.Kind() == reflect.Interface {
		k = k.Elem()
	}
	if k.Kind() == reflect.String {
		return k.String()
	}
	if !k.IsValid() || k.Kind() == reflect.Pointer && k.IsNil() || !k.CanInterface() {
		return ""
	}
	m, ok := k.Interface().(encoding.TextMarshaler)
	if !ok {
		return ""
	}
	text, err := m.MarshalText()
	if err != nil {
		return ""
	}
	return string(text)
}

// masked returns what takes the place of a secret: something of the same type
// that says nothing about it. It is the value itself if that is so already.
func masked(v reflect.Value) (out reflect.Value, changed bool) {
	t := v.Type()
	switch {
	case t.Kind() == reflect.String && t != jsonNumber: // "[FILTERED]" is no number
		if v.String() == Filtered {
			return v, false
		}
		out = reflect.New(t).Elem()
		out.SetString(Filtered)
		return out, true
	case t.Kind() == reflect.Interface && !v.IsNil():
		elem, changed := masked(v.Elem())
		if !changed {
			return v, false
		}
		out = reflect.New(t).Elem()
		out.Set(elem)
		return out, true
	case t.Kind() == reflect.Pointer && !v.IsNil() && t.Elem().Kind() == reflect.String:
		elem, changed := masked(v.Elem())
		if !changed {
			return v, false
		}
		out = reflect.New(t.Elem())
		out.Elem().Set(elem)
		return out.Convert(t), true
	case v.IsZero():
		return v, false
	}
	return reflect.Zero(t), true
}
