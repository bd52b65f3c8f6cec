"""Fault drills on every durable backend, with consumers in processes of their own.

| | what must hold | where it is proven |
|---|---|---|
| a | consumers killed with k unsettled each: exactly k come again | `test_consumers`; C6, D9 (kit) |
| b | broker restarts: nothing lost, consuming again within 5 s of the port opening | `test_broker`; G3, G7 (kit) |
| c | rolling restart of three members under load | `test_consumers` (SIGTERM); L8, L4 (kit: in one process) |
| d | the dead letters are exactly the poison | `test_traffic`; D15, E1 to E4 (kit: one at a time) |
| e | a handler that runs three times its lease is called once | `test_consumers` (a member joins); D10 (kit) |
| f | new topics under a wildcard: each first message arrives | `test_traffic`; B4 (kit: 50 topics, in one process) |
| g | a hundred publishers and a slow consumer: bounded memory, CRITICAL first | `test_traffic`; K5, M1, M5 (kit) |

`make test` runs them in a small size, ``AMB_DRILLS=full`` (`make drills`) in the full one: see `_size`. What they
measure is printed at the end and written to ``build/drills.json``.
"""
