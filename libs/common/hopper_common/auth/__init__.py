"""
Who calls, and what they may do: principals and their roles, API keys, tokens, the decision about one call, and rates.

The guard in `hopper_common.rpc` asks; nothing here knows of grpc, of a database, or of how a caller was heard. It never
keeps a secret: of keys it has hashes, of tokens the public half.
"""
