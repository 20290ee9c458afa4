-- The ledger of a queue: every change of a job's state is one run of this script, and so happens whole or not at all.
--
-- KEYS are those of `ledger.KEYS`, in that order and in one slot. ARGV: the verb, the time to use (empty: the
-- server's own), the consumer group, the policy (visibility, keep_for, keep_done, keep_inline), whether the call is a
-- repetition of one whose answer was lost, then the verb's own.
-- Times and spans are whole microseconds. Numbers that cjson would round are kept as strings.
--
-- A job's record, as JSON in the hash `jobs`: entry (its id in the stream, absent once it is over), place (how it is
-- sorted and found in `open`, `waiting` and `hidden`), same (fingerprint), by (the call that submitted it), priority,
-- queued, visible, run, token (of the last hand-over, as long as its holder may answer), claim (the call that got
-- it), cancelling, status (`done`, `dead` or absent), ended, code, buried (its id among the dead letters), and handed,
-- a list of hand-overs: token, run, worker, ended, code, charged.

local stream, jobs, open, waiting, hidden, entries, done, dead, buried, results, inline, order, claims, void, bell, counters = unpack(KEYS)
local group, bell_group = ARGV[3], ARGV[3] .. ':bell'
local visibility, keep_for, keep_done, keep_inline = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local again = ARGV[8] == '1'
local NEWS, STALE, DUE, BELLS, FORGOTTEN = 8, 16, 256, 64, 1000
local LARGE = 65536
local HOUR = 3600 * 1000000

local function said(answer)
  return (string.gsub(answer.err, '^@user_script: ?%d+: ', ''))
end

-- The server's refusal that ended the run. What `pcall` gives of it differs from version to version.
local refusal

local function refuse(answer)
  refusal = {err = said(answer)}
  error(refusal, 0)
end

local function call(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    refuse(answer)
  end
  return answer
end

local function now_of()
  if ARGV[2] ~= '' then
    return tonumber(ARGV[2])
  end
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

local now = now_of()

local function int(number)
  return string.format('%.0f', number)
end

local function padded(digits)
  return string.rep('0', 20 - #digits) .. digits
end

local function place_of(entry, id)
  local ms, seq = string.match(entry, '^(%d+)-(%d+)$')
  return padded(ms) .. '-' .. padded(seq) .. ':' .. id
end

local function id_of(place)
  return string.sub(place, 43)
end

local function load(id)
  local record = call('HGET', jobs, id)
  return record and cjson.decode(record)
end

local function save(id, record)
  call('HSET', jobs, id, cjson.encode(record))
end

local function ring()
  call('XADD', bell, 'MAXLEN', BELLS, '*', 'ring', '1')
end

-- Groups are there at the first use, and again after a server lost them.
local function ensure_groups()
  for _, one in ipairs({{stream, group, '0'}, {stream, bell_group, '$'}, {bell, bell_group, '$'}}) do
    local answer = redis.pcall('XGROUP', 'CREATE', one[1], one[2], one[3], 'MKSTREAM')
    if answer.err and not string.find(answer.err, 'BUSYGROUP', 1, true) then
      refuse(answer)
    end
  end
end

local function cursors()
  local found = {}
  for _, info in ipairs(call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for i = 1, #info, 2 do
      fields[info[i]] = info[i + 1]
    end
    found[fields['name']] = fields['last-delivered-id']
  end
  return found
end

-- An entry that stands in the ledger already is news to nobody: groups that have read all before it go past it.
local function pass_by(entry)
  local found = cursors()
  if not found[group] or not found[bell_group] then
    ensure_groups()
    found = cursors()
  end
  for _, name in ipairs({group, bell_group}) do
    local unread = call('XRANGE', stream, '(' .. found[name], '(' .. entry, 'COUNT', 1)
    if #unread == 0 then
      call('XGROUP', 'SETID', stream, name, entry)
    end
  end
end

local function document_of(fields)
  local named = {}
  for i = 1, #fields, 2 do
    named[fields[i]] = fields[i + 1]
  end
  return named['job'] or named['document'] or fields[2] or ''
end

local function document_at(key, entry)
  local found = entry and call('XRANGE', key, entry, entry)
  return found and found[1] and document_of(found[1][2])
end

-- The group's list of pending entries mirrors who holds what since when, for the tools that read it.
local function mirror(record)
  local last = record.handed[#record.handed]
  redis.pcall('XCLAIM', stream, group, last.worker, 0, record.entry, 'IDLE', 0, 'RETRYCOUNT', #record.handed, 'FORCE', 'JUSTID')
end

local function wait(record)
  call('ZREM', hidden, record.place)
  call('ZADD', waiting, -record.priority, record.place)
  call('XACK', stream, group, record.entry)
end

local function hide(record, till)
  record.visible = int(till)
  call('ZREM', waiting, record.place)
  call('ZADD', hidden, record.visible, record.place)
end

local function drop_claim(record)
  if record.claim then
    call('HDEL', claims, record.claim)
    record.claim = nil
  end
end

local function end_hand_over(record, at, code, charged)
  local last = record.handed[#record.handed]
  if last and not last.ended then
    last.ended, last.code, last.charged = int(at), code, charged or nil
  end
  record.token = nil
  drop_claim(record)
end

local function forget(ids)
  for _, id in ipairs(ids) do
    call('ZREM', done, id)
    call('HDEL', jobs, id)
    call('HDEL', results, id)
    call('HDEL', inline, id)
    call('ZREM', order, id)
  end
end

local function finish(id, record, status, code, result)
  local entry, document = record.entry, nil
  if status == 'dead' then
    document = document_at(stream, entry)
  end
  call('ZREM', open, record.place)
  call('ZREM', waiting, record.place)
  call('ZREM', hidden, record.place)
  call('HDEL', entries, entry)
  call('XACK', stream, group, entry)
  call('XDEL', stream, entry)
  record.entry, record.token, record.status, record.ended, record.code = nil, nil, status, int(now), code
  if status == 'dead' then
    local told = {'id', id, 'code', code or '', 'priority', int(record.priority), 'ended', record.ended}
    for name, value in pairs({job = document, result = result}) do
      told[#told + 1] = name
      told[#told + 1] = value
    end
    record.buried = call('XADD', dead, '*', unpack(told))
    call('ZADD', buried, now, id)
  else
    call('ZADD', done, now, id)
    forget(call('ZRANGEBYSCORE', done, '-inf', '(' .. int(now - keep_for), 'LIMIT', 0, FORGOTTEN))
    local too_many = call('ZCARD', done) - keep_done
    if too_many > 0 then
      forget(call('ZRANGE', done, 0, math.min(too_many, FORGOTTEN) - 1))
    end
  end
  if call('ZSCORE', status == 'dead' and buried or done, id) then
    save(id, record)
  end
end

local function withdraw(id, record, code, charged)
  end_hand_over(record, code and now or record.visible, code, charged)
  finish(id, record, 'done', 'cancelled')
end

local function stand(id, record, entry)
  record.entry, record.place, record.visible = entry, place_of(entry, id), int(now)
  call('HSET', entries, entry, id)
  call('ZADD', open, -record.priority, record.place)
  call('ZADD', waiting, -record.priority, record.place)
  save(id, record)
end

-- What a hand-over's holder may still do; a repeated answer to an end that it got through before is as good.
local function held(id, token)
  local record = load(id)
  if record and not record.status and record.token == token then
    return record
  end
  return nil, record
end

local function was_ended(record, token, code)
  for _, one in ipairs(record and record.handed or {}) do
    if one.token == token then
      return one.ended and one.code == code
    end
  end
end

local function next_token()
  local last = tonumber(call('HGET', counters, 'token') or '0')
  local token = int(math.max(last + 1, now))
  call('HSET', counters, 'token', token)
  return token
end

-- A job as it is handed over: id, record, document, bytes of it or -1 where it is gone. A large document is left out,
-- to be read by itself by somebody who knows how long that may take.
local function handed_over(id, record, document)
  local size = document and #document or -1
  return {id, cjson.encode(record), size > LARGE and '' or document or '', size}
end

-- An entry of others: its id, its fields, their bytes; the fields of a large one are left out as well.
local function stray_of(found)
  local size = 0
  for _, part in ipairs(found[2]) do
    size = size + #part
  end
  return {found[1], size > LARGE and {} or found[2], size}
end

-- Entries of others that no ledger knows.
local function strays_among(found)
  local strays = {}
  for _, one in ipairs(found) do
    if call('HEXISTS', entries, one[1]) == 1 then
      call('XACK', stream, group, one[1])
    else
      strays[#strays + 1] = stray_of(one)
    end
  end
  return strays
end

local function news(worker)
  local found = redis.pcall('XREADGROUP', 'GROUP', group, worker, 'COUNT', NEWS, 'STREAMS', stream, '>')
  if found and found.err then
    ensure_groups()
    found = call('XREADGROUP', 'GROUP', group, worker, 'COUNT', NEWS, 'STREAMS', stream, '>')
  end
  return found and strays_among(found[1][2]) or {}
end

local function unread(strays, entry)
  if call('HEXISTS', entries, entry) == 1 then
    return
  end
  local found = call('XRANGE', stream, entry, entry)
  if found[1] then
    strays[#strays + 1] = stray_of(found[1])
  else
    call('XACK', stream, group, entry)
  end
end

-- What a reader took and never put into the ledger; once in a while for the whole fleet.
local function sweep(worker, strays)
  local last = tonumber(call('HGET', counters, 'swept') or '0')
  if last <= now and now - last < visibility / 4 then
    return
  end
  call('HSET', counters, 'swept', int(now))
  local idle_ms = int(math.ceil(visibility / 1000))
  for _, one in ipairs(call('XPENDING', stream, group, 'IDLE', idle_ms, '-', '+', STALE)) do
    if #call('XCLAIM', stream, group, worker, idle_ms, one[1], 'JUSTID') > 0 then
      unread(strays, one[1])
    end
  end
  for _, info in ipairs(call('XINFO', 'CONSUMERS', stream, group)) do
    if info[4] == 0 and info[6] > HOUR / 1000 then
      call('XGROUP', 'DELCONSUMER', stream, group, info[2])
    end
  end
end

-- A record that somebody deleted leaves nothing to hand over.
local function drop(place)
  for _, key in ipairs({open, waiting, hidden}) do
    call('ZREM', key, place)
  end
end

local function surface()
  for _, place in ipairs(call('ZRANGEBYSCORE', hidden, '-inf', int(now), 'LIMIT', 0, DUE)) do
    local id = id_of(place)
    local record = load(id)
    if not record then
      drop(place)
    elseif record.cancelling then
      withdraw(id, record)
    else
      wait(record)
    end
  end
end

local function until_next()
  local first = call('ZRANGE', hidden, 0, 0, 'WITHSCORES')
  return first[2] and int(math.max(0, tonumber(first[2]) - now)) or '-1'
end

local verbs = {}

function verbs.open()
  ensure_groups()
  return 'ok'
end

-- {strays, a job that is handed over or false, microseconds until something hidden is due or -1}
-- Where there is nothing to claim, no earlier ring is worth hearing.
function verbs.claim(worker, claim)
  if call('ZSCORE', void, claim) then
    return {{}, false, '-1'}
  end
  local known = call('HGET', claims, claim)
  if known then
    local record = load(known)
    return {{}, handed_over(known, record, document_at(stream, record.entry)), '0'}
  end
  local strays = news(worker)
  sweep(worker, strays)
  if #strays > 0 then
    return {strays, false, '0'}
  end
  local answer = verbs.take(worker, claim)
  if not answer[2] then
    redis.pcall('XGROUP', 'SETID', stream, bell_group, cursors()[group])
    redis.pcall('XGROUP', 'SETID', bell, bell_group, '$')
  end
  return answer
end

-- As `claim`, without a look for what is new.
function verbs.take(worker, claim)
  surface()
  while true do
    local place = call('ZRANGE', waiting, 0, 0)[1]
    if not place then
      return {{}, false, until_next()}
    end
    local id = id_of(place)
    local record = load(id)
    local document = record and document_at(stream, record.entry)
    if not record then
      drop(place)
    elseif record.cancelling then
      withdraw(id, record)
    elseif not document then
      end_hand_over(record, record.visible)
      finish(id, record, 'dead', 'document_lost')
    else
      end_hand_over(record, record.visible)
      record.token, record.claim = next_token(), claim
      table.insert(record.handed, {token = record.token, run = record.run, worker = worker})
      call('HSET', claims, claim, id)
      hide(record, now + visibility)
      mirror(record)
      save(id, record)
      return {{}, handed_over(id, record, document), '0'}
    end
  end
end

-- Undo calls to `claim` whose answer nobody heard, also those that are still to come; gives what they read.
function verbs.void(worker, ...)
  for _, claim in ipairs({...}) do
    local id = call('HGET', claims, claim)
    local record = id and load(id)
    if record and record.claim == claim then
      table.remove(record.handed)
      drop_claim(record)
      record.token, record.visible = nil, int(now)
      wait(record)
      save(id, record)
      ring()
    end
    call('ZADD', void, now, claim)
  end
  call('ZREMRANGEBYSCORE', void, '-inf', int(now - HOUR))
  local strays = {}
  local pending = redis.pcall('XPENDING', stream, group, '-', '+', STALE * 8, worker)
  for _, one in ipairs(pending.err and {} or pending) do
    unread(strays, one[1])
  end
  return strays
end

-- Four to an entry: its id, the job's id, fingerprint and priority. Each becomes a job unless it is one already.
function verbs.adopt(...)
  local told, verdicts = {...}, {}
  for i = 1, #told, 4 do
    local entry, id, same, priority = told[i], told[i + 1], told[i + 2], tonumber(told[i + 3])
    local verdict = 'known'
    if call('HEXISTS', entries, entry) == 0 then
      local other = load(id)
      if other and other.same == same then
        verdict = 'duplicate'
        call('XACK', stream, group, entry)
        call('XDEL', stream, entry)
      else
        local queued = tonumber(string.match(entry, '^%d+')) * 1000
        queued = (queued > now or queued < now - 720 * HOUR) and now or queued
        local record = {same = same, priority = priority, queued = int(queued), run = 0, handed = {}}
        verdict = other and 'conflict' or 'new'
        id = other and entry or id
        stand(id, record, entry)
        call('XACK', stream, group, entry)
        if other then
          finish(id, record, 'dead', 'id_conflict')
        else
          ring()
        end
      end
    end
    verdicts[#verdicts + 1] = verdict
  end
  return verdicts
end

function verbs.submit(id, same, priority, by, document)
  local known = load(id)
  if known then
    return known.same ~= same and 'conflict' or known.by == by and 'new' or 'known'
  end
  local entry = call('XADD', stream, '*', 'id', id, 'priority', priority, 'job', document)
  local record = {same = same, by = by, priority = tonumber(priority), queued = int(now), run = 0, handed = {}}
  stand(id, record, entry)
  pass_by(entry)
  ring()
  return 'new'
end

function verbs.extend(id, token)
  local record = held(id, token)
  if not record then
    return 'lost'
  end
  drop_claim(record)
  hide(record, now + visibility)
  mirror(record)
  save(id, record)
  return record.cancelling and 'cancelled' or 'ok'
end

-- Its first write is one that a server without memory allows, and with it all that follow.
function verbs.settle(id, token, status, code, charged, job_code, result, images)
  local record, other = held(id, token)
  if not record then
    return again and was_ended(other, token, code) and 'ok' or 'lost'
  end
  call('ZREM', hidden, record.place)
  end_hand_over(record, now, code, charged == '1')
  finish(id, record, status, job_code ~= '' and job_code or nil, result)
  if call('HEXISTS', jobs, id) == 0 then
    return 'ok'
  end
  call('HSET', results, id, result)
  if images ~= '' then
    call('HSET', inline, id, images)
    call('ZADD', order, call('HINCRBY', counters, 'inline', 1), id)
    for _ = keep_inline + 1, call('ZCARD', order) do
      call('HDEL', inline, call('ZPOPMIN', order)[1])
    end
  end
  return 'ok'
end

function verbs.release(id, token, delay, code, charged)
  local record, other = held(id, token)
  if not record then
    return again and was_ended(other, token, code) and 'ok' or 'lost'
  end
  call('ZREM', hidden, record.place)
  if record.cancelling then
    withdraw(id, record, code, charged == '1')
    return 'ok'
  end
  end_hand_over(record, now, code, charged == '1')
  record.visible = int(now + tonumber(delay))
  wait(record)
  if tonumber(delay) > 0 then
    hide(record, now + tonumber(delay))
  end
  save(id, record)
  ring()
  return 'ok'
end

-- What this worker held when its last run ended: given back, or noted where the lease ran out before.
function verbs.recall(id, token, code, charged, rest)
  local record = load(id)
  for _, one in ipairs(record and record.handed or {}) do
    if one.token == token and not one.code then
      local is_held = record.token == token and not one.ended
      if is_held and record.cancelling then
        withdraw(id, record, code, charged == '1')
        return 'ok'
      elseif is_held then
        end_hand_over(record, now, code, charged == '1')
        record.visible = int(now + tonumber(rest))
        wait(record)
        if tonumber(rest) > 0 then
          hide(record, now + tonumber(rest))
        end
        ring()
      else
        one.code, one.charged = code, charged == '1' or nil
      end
      save(id, record)
      return 'ok'
    end
  end
  return 'lost'
end

function verbs.requeue(id)
  local record = load(id)
  if not record or record.status ~= 'dead' then
    return record and not record.status and again and record.run > 0 and 'ok' or 'lost'
  end
  local document = document_at(dead, record.buried)
  if not document then
    return 'lost'
  end
  call('HDEL', results, id)
  call('HDEL', inline, id)
  call('ZREM', order, id)
  call('ZREM', buried, id)
  call('XDEL', dead, record.buried)
  record.run, record.queued = record.run + 1, int(now)
  record.status, record.ended, record.code, record.buried, record.cancelling = nil, nil, nil, nil, nil
  local entry = call('XADD', stream, '*', 'id', id, 'priority', int(record.priority), 'job', document)
  stand(id, record, entry)
  pass_by(entry)
  ring()
  return 'ok'
end

function verbs.cancel(id)
  local record = load(id)
  if not record or record.status then
    return record and again and record.code == 'cancelled' and 'ok' or 'lost'
  end
  if record.token and tonumber(record.visible) > now then
    record.cancelling = true
    save(id, record)
  else
    withdraw(id, record)
  end
  return 'ok'
end

local ok, answer = pcall(verbs[ARGV[1]], unpack(ARGV, 9))
if not ok then
  return refusal or redis.error_reply('SCRIPT ' .. tostring(answer))
end
return answer
