"""Operators: schema, fake, autograd and backends. One file an operator; `registry` lists them."""
