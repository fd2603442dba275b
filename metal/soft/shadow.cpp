#include "shadow.h"
#include <algorithm>

namespace soft {

namespace {

constexpr size_t kChunk = 1024;

bool same_simdgroup(const Moment& a, const Moment& b) { return a.thread / kLanes == b.thread / kLanes; }

// Whether the last write happened before `now`.
bool write_before(const Moment& write, const Moment& now) {
  if (write.epoch != now.epoch) return true;
  if (write.group != now.group) return false;
  if (write.phase != now.phase || write.thread == now.thread) return true;
  return same_simdgroup(write, now) && write.simd_phase != now.simd_phase;
}

bool reads_before(const Moment& read, const Moment& now) {
  if (read.epoch != now.epoch) return true;
  if (read.group != now.group || read.many_groups) return false;
  if (read.phase != now.phase) return true;
  if (read.many_simdgroups || !same_simdgroup(read, now)) return false;
  if (read.simd_phase != now.simd_phase) return true;
  return read.thread == now.thread && !read.many_threads;
}

void record_read(Moment& last, const Moment& now) {
  Moment next = now;
  if (last.epoch == now.epoch) {
    next.many_groups = last.many_groups || last.group != now.group;
    if (last.group != now.group) {
      next.atomic = last.atomic && now.atomic;
    } else if (last.phase == now.phase) {
      next.atomic = last.atomic && now.atomic;
      next.many_simdgroups = last.many_simdgroups || !same_simdgroup(last, now);
      const bool same_moment = last.simd_phase == now.simd_phase;
      next.many_threads = same_moment && (last.many_threads || last.thread != now.thread);
    } else if (next.many_groups) {
      next.atomic = last.atomic && now.atomic;
    }
  }
  last = next;
}

Conflict conflict(Conflict::Kind kind, const Moment& other, const Moment& now) {
  Conflict c;
  c.kind = kind;
  c.thread = uint32_t(other.thread);
  c.other_group = other.group != now.group;
  return c;
}

}  // namespace

void ShadowDeleter::operator()(Shadow* shadow) const { delete shadow; }

Shadow::Shadow(size_t bytes) : chunks_((bytes + kChunk - 1) / kChunk) {}

// The chunk of `offset` with units that fit the access.
Shadow::Chunk& Shadow::prepare(size_t offset, size_t bytes) {
  Chunk& chunk = chunks_[offset / kChunk];
  if (!chunk.cells) chunk.cells = std::make_unique<Cell[]>(kChunk >> chunk.shift);
  const size_t odd = offset | bytes;
  const uint8_t shift = odd & 1 ? 0 : odd & 2 ? 1 : 2;
  if (shift < chunk.shift) {
    auto finer = std::make_unique<Cell[]>(kChunk >> shift);
    for (size_t i = 0; i < kChunk >> shift; i++) finer[i] = chunk.cells[i >> (chunk.shift - shift)];
    chunk.cells = std::move(finer);
    chunk.shift = shift;
  }
  return chunk;
}

template <typename Visit>
Conflict Shadow::visit(size_t offset, size_t bytes, Visit visit) {
  Conflict first;
  while (bytes > 0) {
    const size_t part = std::min(bytes, kChunk - offset % kChunk);
    Chunk& chunk = prepare(offset, part);
    const size_t begin = offset % kChunk >> chunk.shift, end = begin + (part >> chunk.shift);
    for (size_t i = begin; i < end; i++) {
      const Conflict c = visit(chunk.cells[i]);
      if (c.kind == Conflict::kNone || first.kind != Conflict::kNone) continue;
      first = c;
      first.offset = offset / kChunk * kChunk + (i << chunk.shift);
    }
    offset += part;
    bytes -= part;
  }
  return first;
}

Conflict Shadow::read(size_t offset, size_t bytes, const Moment& now) {
  return visit(offset, bytes, [&](Cell& cell) {
    Conflict c;
    if (!(now.atomic && cell.write.atomic) && !write_before(cell.write, now))
      c = conflict(Conflict::kReadAfterWrite, cell.write, now);
    record_read(cell.read, now);
    return c;
  });
}

Conflict Shadow::write(size_t offset, size_t bytes, const Moment& now) {
  return visit(offset, bytes, [&](Cell& cell) {
    Conflict c;
    if (!(now.atomic && cell.write.atomic) && !write_before(cell.write, now))
      c = conflict(Conflict::kWriteAfterWrite, cell.write, now);
    else if (!(now.atomic && cell.read.atomic) && !reads_before(cell.read, now))
      c = conflict(Conflict::kWriteAfterRead, cell.read, now);
    cell.write = now;
    return c;
  });
}

bool Shadow::written(size_t offset, size_t bytes, uint32_t group) const {
  for (const size_t end = offset + bytes; offset < end;) {
    const Chunk& chunk = chunks_[offset / kChunk];
    if (!chunk.cells || chunk.cells[offset % kChunk >> chunk.shift].write.group != group) return false;
    offset = ((offset >> chunk.shift) + 1) << chunk.shift;
  }
  return true;
}

}  // namespace soft
