#include "traffic.h"

namespace soft {

namespace {

enum : uint32_t { kLoad = 1, kStore = 2 };

uint64_t hash(uint64_t sector) { return (sector * 0x9e3779b97f4a7c15ull) >> 20; }

}  // namespace

void Traffic::begin_group() {
  generation_++;
  used_ = 0;
}

Traffic::Entry& Traffic::find(uint64_t sector) {
  const size_t mask = entries_.size() - 1;
  size_t i = hash(sector) & mask;
  while (entries_[i].generation == generation_ && entries_[i].sector != sector) i = (i + 1) & mask;
  return entries_[i];
}

void Traffic::grow() {
  std::vector<Entry> old(entries_.empty() ? 1024 : entries_.size() * 2);
  old.swap(entries_);
  for (const Entry& e : old)
    if (e.generation == generation_) find(e.sector) = e;
}

void Traffic::touch(uint64_t address, uint64_t bytes, bool store) {
  if (bytes == 0) return;
  const uint32_t flag = store ? kStore : kLoad;
  for (uint64_t sector = address / kSector; sector <= (address + bytes - 1) / kSector; sector++) {
    if (used_ * 2 >= entries_.size()) grow();
    Entry& e = find(sector);
    if (e.generation != generation_) {
      e = {sector, generation_, 0};
      used_++;
    }
    if (e.seen & flag) continue;
    e.seen |= flag;
    (store ? stored_ : loaded_)++;
  }
}

}  // namespace soft
