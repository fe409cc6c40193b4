package criu

import (
	"fmt"
	"reflect"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// marshal encodes a struct as a protobuf message (proto2). A field's tag is its number:
//
//	pb:"7"          bool, string, []byte, integers (varint), structs (messages)
//	pb:"7,zigzag"   sint32, sint64
//	pb:"7,fixed"    fixed64
//
// A slice is a repeated field, not packed. A nil pointer is an optional field that is
// absent; all else is written, zeroes too, as the fields that CRIU requires must be there.
func marshal(message any) []byte { return appendMessage(nil, reflect.ValueOf(message)) }

func appendMessage(b []byte, v reflect.Value) []byte {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	t := v.Type()
	for i := range t.NumField() {
		var number protowire.Number
		tag, form, _ := strings.Cut(t.Field(i).Tag.Get("pb"), ",")
		if _, err := fmt.Sscan(tag, &number); err != nil {
			panic("criu: field " + t.Field(i).Name + " has no number") // a mistake in messages.go
		}
		b = appendField(b, number, form, v.Field(i))
	}
	return b
}

func appendField(b []byte, number protowire.Number, form string, v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return b
		}
		return appendField(b, number, form, v.Elem())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), v.Bytes())
		}
		for i := range v.Len() {
			b = appendField(b, number, form, v.Index(i))
		}
		return b
	case reflect.Struct:
		return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), appendMessage(nil, v))
	case reflect.String:
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), v.String())
	}
	n := scalar(v)
	switch form {
	case "fixed":
		return protowire.AppendFixed64(protowire.AppendTag(b, number, protowire.Fixed64Type), n)
	case "zigzag":
		n = protowire.EncodeZigZag(int64(n))
	}
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), n)
}

func scalar(v reflect.Value) uint64 {
	switch {
	case v.Kind() == reflect.Bool:
		return protowire.EncodeBool(v.Bool())
	case v.CanInt():
		return uint64(v.Int())
	}
	return v.Uint()
}
