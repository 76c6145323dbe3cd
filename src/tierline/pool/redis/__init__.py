"""Redis or Valkey as a tier: one server, a cluster, or a master that sentinels name."""

from tierline.pool.redis.settings import RedisSettings
from tierline.pool.redis.tier import RedisTier

__all__ = ["RedisSettings", "RedisTier"]
