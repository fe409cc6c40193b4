package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
)

// findCodes reads the constants of type api.Code from the packages below a
// directory. The codes of a package are under its folder.
func findCodes(source string) (map[string][]api.Code, error) {
	all := map[string][]api.Code{}
	err := filepath.WalkDir(source, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "testdata":
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder, err := filepath.Rel(source, filepath.Dir(name))
		if err != nil {
			return err
		}
		for _, code := range codesOf(file) {
			if !slices.Contains(all[folder], code) {
				all[folder] = append(all[folder], code)
			}
		}
		return nil
	})
	return all, err
}

// codesOf returns the values of a file's constants of type api.Code.
func codesOf(file *ast.File) (codes []api.Code) {
	for _, decl := range file.Decls {
		constants, ok := decl.(*ast.GenDecl)
		if !ok || constants.Tok != token.CONST {
			continue
		}
		for _, spec := range constants.Specs {
			constant := spec.(*ast.ValueSpec)
			of, ok := constant.Type.(*ast.SelectorExpr)
			if !ok || of.Sel.Name != "Code" {
				continue
			}
			for _, v := range constant.Values {
				if literal, ok := v.(*ast.BasicLit); ok && literal.Kind == token.STRING {
					if text, err := strconv.Unquote(literal.Value); err == nil {
						codes = append(codes, api.Code(text))
					}
				}
			}
		}
	}
	return codes
}
