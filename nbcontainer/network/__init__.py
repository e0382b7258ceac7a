"""Networks of containers: bridges, addresses, names, published ports.

One *keeper* process for each store owns what must outlive a notebook's kernel (`keeper`). The engine talks to it
through `client`; everything else here is the keeper's. Decisions are pure (`plan`, `rules`, `dns`, `ports`); only
`links` and `netlink` know pyroute2, and the keeper alone loads them.
"""
