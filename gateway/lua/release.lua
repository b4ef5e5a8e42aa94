-- End one request: give its leases back, and correct the tokens that it was charged to what it used, in the bucket
-- that was charged. Does nothing the second time, nor for a request that was never admitted.
--
-- KEYS  as for admit.lua: the windows of the organization, then at least one set of leases
-- ARGV  1 request id  2 the bucket that was charged  3 tokens used less tokens charged; then the windows' names
-- Returns 1 if it did something.

local WINDOW = '>I8I8I8I8I8I8I8'
local released = 0
for set = 2, #KEYS do
  released = released + redis.call('ZREM', KEYS[set], ARGV[1])
end
if released == 0 then return 0 end

local bucket, correction = tonumber(ARGV[2]), tonumber(ARGV[3])
for w = 4, #ARGV do
  local window = correction ~= 0 and redis.call('HGET', KEYS[1], ARGV[w])
  if window then
    local at, r, t, i, R, T, I = struct.unpack(WINDOW, window)
    if at == bucket then t = math.max(0, t + correction) end
    if at == bucket + 1 then T = math.max(0, T + correction) end
    redis.call('HSET', KEYS[1], ARGV[w], struct.pack(WINDOW, at, r, t, i, R, T, I))
  end
end
return 1
