"""How a dense layer is computed: gathered products, Winograd's tiles, and the cost model that chooses."""
