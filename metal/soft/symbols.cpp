#include "symbols.h"
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>

#ifndef SOFT_SYMBOLIZER
#define SOFT_SYMBOLIZER "llvm-symbolizer"
#endif

namespace soft {

namespace {

std::mutex lines_mutex;
std::map<std::pair<std::string, uintptr_t>, uint32_t>
    known_lines;  // by image and offset; 0: not in the source

std::string quoted(const std::string& s) {
  std::string out = "'";
  for (char c : s) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

// The line in "FILE:LINE:COLUMN" if the file is the kernel's source and no header, else 0.
uint32_t source_line(const std::string& frame) {
  const size_t column = frame.rfind(':');
  const size_t line = column == std::string::npos || column == 0 ? column : frame.rfind(':', column - 1);
  if (line == std::string::npos) return 0;
  const std::string file = frame.substr(0, line), name = "program_source";
  const bool in_source =
      file.size() >= name.size() && file.compare(file.size() - name.size(), name.size(), name) == 0;
  return in_source ? uint32_t(std::strtoul(frame.c_str() + line + 1, nullptr, 10)) : 0;
}

std::string output_of(const std::string& command) {
  std::string out;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return out;
  char part[4096];
  while (const size_t n = std::fread(part, 1, sizeof part, pipe)) out.append(part, n);
  pclose(pipe);
  return out;
}

// For each address, frames from the innermost inlined call outwards, then an empty line.
void look_up(const std::string& path, const std::set<uintptr_t>& offsets) {
  std::string command = std::string(SOFT_SYMBOLIZER) + " --functions=none --obj=" + quoted(path);
  for (uintptr_t offset : offsets) {
    char address[32];
    std::snprintf(address, sizeof address, " 0x%zx", size_t(offset));
    command += address;
  }
  const std::string out = output_of(command + " 2>/dev/null");
  auto offset = offsets.begin();
  uint32_t innermost = 0;
  for (size_t at = 0; at < out.size() && offset != offsets.end();) {
    const size_t end = std::min(out.find('\n', at), out.size());
    const std::string line = out.substr(at, end - at);
    at = end + 1;
    if (line.empty()) {
      known_lines[{path, *offset++}] = innermost;
      innermost = 0;
    } else if (innermost == 0) {
      innermost = source_line(line);
    }
  }
  for (; offset != offsets.end(); ++offset) known_lines[{path, *offset}] = 0;
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

std::vector<uint32_t> source_lines(const Image& image, const std::vector<CallPath>& paths) {
  const std::lock_guard<std::mutex> lock(lines_mutex);
  std::set<uintptr_t> unknown;
  for (const CallPath& path : paths)
    for (uintptr_t address : path)
      if (inside(image, address) && !known_lines.count({image.path, call_offset(image, address)}))
        unknown.insert(call_offset(image, address));
  if (!unknown.empty()) look_up(image.path, unknown);
  std::vector<uint32_t> lines;
  for (const CallPath& path : paths) {
    uint32_t line = 0;
    for (uintptr_t address : path)
      if (line == 0 && inside(image, address)) line = known_lines[{image.path, call_offset(image, address)}];
    lines.push_back(line);
  }
  return lines;
}

}  // namespace soft
