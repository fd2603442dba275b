#include "symbols.h"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include "toolchain.h"

#ifndef SOFT_SYMBOLIZER
#define SOFT_SYMBOLIZER "llvm-symbolizer"
#endif

namespace soft {

namespace {

std::mutex places_mutex;
std::map<std::pair<std::string, uintptr_t>, SourcePlace> known_places;  // by image and offset

std::string quoted(const std::string& s) {
  std::string out = "'";
  for (char c : s) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// The place in "FILE:LINE:COLUMN" if the file is the kernel's source: the standard library's lie in
// SOFT_HOME.
SourcePlace source_place(const std::string& frame) {
  const size_t column = frame.rfind(':');
  const size_t line = column == std::string::npos || column == 0 ? column : frame.rfind(':', column - 1);
  if (line == std::string::npos || frame.compare(0, sizeof SOFT_HOME - 1, SOFT_HOME) == 0) return {};
  const std::string file = frame.substr(frame.rfind('/', line) + 1, line - frame.rfind('/', line) - 1);
  if (file == "trampolines" || file.find('?') != std::string::npos) return {};
  return {file == "program_source" ? "" : file,
          uint32_t(std::strtoul(frame.c_str() + line + 1, nullptr, 10))};
}

// For each address, frames from the innermost inlined call outwards, then an empty line.
void look_up(const std::string& path, const std::set<uintptr_t>& offsets) {
  std::string command = std::string(SOFT_SYMBOLIZER) + " --functions=none --obj=" + quoted(path);
  for (uintptr_t offset : offsets) {
    char address[32];
    std::snprintf(address, sizeof address, " 0x%zx", size_t(offset));
    command += address;
  }
  std::string out;
  output_of(command + " 2>/dev/null", out);
  auto offset = offsets.begin();
  SourcePlace innermost;
  for (size_t at = 0; at < out.size() && offset != offsets.end();) {
    const size_t end = std::min(out.find('\n', at), out.size());
    const std::string line = out.substr(at, end - at);
    at = end + 1;
    if (line.empty()) {
      known_places[{path, *offset++}] = innermost;
      innermost = {};
    } else if (innermost.line == 0) {
      innermost = source_place(line);
    }
  }
  for (; offset != offsets.end(); ++offset) known_places[{path, *offset}] = {};
}

// The call, not the instruction after it.
uintptr_t call_offset(const Image& image, uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(image.begin) - 1;
}

bool inside(const Image& image, uintptr_t address) {
  return address > reinterpret_cast<uintptr_t>(image.begin) &&
         address <= reinterpret_cast<uintptr_t>(image.end);
}

}  // namespace

std::vector<SourcePlace> source_places(const Image& image, const std::vector<CallPath>& paths) {
  const std::lock_guard<std::mutex> lock(places_mutex);
  std::set<uintptr_t> unknown;
  for (const CallPath& path : paths)
    for (uintptr_t address : path)
      if (inside(image, address) && !known_places.count({image.path, call_offset(image, address)}))
        unknown.insert(call_offset(image, address));
  if (!unknown.empty()) look_up(image.path, unknown);
  std::vector<SourcePlace> places;
  for (const CallPath& path : paths) {
    SourcePlace place;
    for (uintptr_t address : path)
      if (place.line == 0 && inside(image, address))
        place = known_places[{image.path, call_offset(image, address)}];
    places.push_back(place);
  }
  return places;
}

}  // namespace soft
