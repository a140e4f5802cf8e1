module example.org/bitlinear

go 1.19
