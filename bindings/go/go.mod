module github.com/libapa/libapa/bindings/go

go 1.19
