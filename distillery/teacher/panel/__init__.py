"""Several teachers as one: each row gets the response of one of them."""
