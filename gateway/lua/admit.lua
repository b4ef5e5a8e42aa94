-- Charge one request to all limits that stand over it, or to none. Integers, and the server's own clock.
--
-- KEYS  1 the windows of the organization, then the sets of leases. All carry one hash tag.
-- ARGV  1 request id  2 tokens  3 images  4 milliseconds until its lease expires  5 milliseconds of a window
--       6 how many windows; their names; of each the most requests, tokens and images;
--       of each set of leases the most requests at once. -1 for no limit.
-- Returns whether it was admitted (1 or 0), the number of the current bucket, the milliseconds since it began; then
--       what was found: each window, or false for none; the number of leases in each set.
--
-- A window is eight bytes each of: its bucket; requests, tokens and images in it; the same of the bucket before.

local WINDOW = '>I8I8I8I8I8I8I8'
local tokens, images = tonumber(ARGV[2]), tonumber(ARGV[3])
local lease_ms, window_ms, windows = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local elapsed_ms = now_ms % window_ms
local rest_ms = window_ms - elapsed_ms
local bucket = (now_ms - elapsed_ms) / window_ms
local admitted = true
local next_arg = 7 + windows  -- the first of the ceilings

local function ceiling()
  next_arg = next_arg + 1
  return tonumber(ARGV[next_arg - 1])
end

local function check(cost, current, previous)
  local most = ceiling()
  local used = current + math.ceil(previous * rest_ms / window_ms)
  if most >= 0 and cost > 0 and used + cost > most then admitted = false end
end

local found = windows > 0 and redis.call('HMGET', KEYS[1], unpack(ARGV, 7, 6 + windows)) or {}
local charged = {}
for w = 1, windows do
  local at, r, t, i, R, T, I = bucket, 0, 0, 0, 0, 0, 0
  if found[w] then
    at, r, t, i, R, T, I = struct.unpack(WINDOW, found[w])
    if at == bucket - 1 then r, t, i, R, T, I = 0, 0, 0, r, t, i end
    if at < bucket - 1 then r, t, i, R, T, I = 0, 0, 0, 0, 0, 0 end
  end
  check(1, r, R)
  check(tokens, t, T)
  check(images, i, I)
  charged[2 * w - 1] = ARGV[6 + w]
  charged[2 * w] = struct.pack(WINDOW, bucket, r + 1, t + tokens, i + images, R, T, I)
end
for set = 2, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[set], '-inf', now_ms)
  local held, most = redis.call('ZCARD', KEYS[set]), ceiling()
  if most >= 0 and held >= most then admitted = false end
  found[windows + set - 1] = held
end

if admitted then
  if windows > 0 then
    redis.call('HSET', KEYS[1], unpack(charged))
    if redis.call('PTTL', KEYS[1]) < 2 * window_ms then redis.call('PEXPIRE', KEYS[1], 3 * window_ms) end
  end
  for set = 2, #KEYS do
    redis.call('ZADD', KEYS[set], now_ms + lease_ms, ARGV[1])
    if redis.call('PTTL', KEYS[set]) < lease_ms then redis.call('PEXPIRE', KEYS[set], 2 * lease_ms) end
  end
end
return {admitted and 1 or 0, bucket, elapsed_ms, unpack(found, 1, windows + #KEYS - 1)}
