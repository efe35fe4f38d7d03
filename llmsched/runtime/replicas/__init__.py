"""Several gateways on one database: each accepts, reads and streams, one leads.

    client ──▶ a gateway that follows ──accepted jobs──▶ database ──taken up──▶ the gateway that leads ──▶ engines
                     │   ▲                                                          │   ▲
                     │   └──────────────── committed events (feed) ◀────────────────┘   │
                     └──────────────── what only the leader can answer (relay) ─────────┘

election.py   holds the lease, or waits for it
intake.py     accepts jobs for whoever leads
feed.py       committed events on their way to other gateways
peer.py       what a gateway asks the leader over HTTP
"""
