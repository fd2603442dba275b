// Golden cases for native tests: numbers of case.json and tensors of expected.safetensors, as float64.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace goldens {

inline std::string read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot read " + path.string());
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// The numbers after `"key":` in a JSON text, one or a flat list of them; empty if the key is absent or null.
inline std::vector<double> numbers(const std::string& json, const std::string& key, size_t from = 0) {
  std::vector<double> out;
  size_t at = json.find("\"" + key + "\":", from);
  if (at == std::string::npos) return out;
  at = json.find_first_not_of(" \n[", at + key.size() + 3);
  while (at < json.size()) {
    char* end = nullptr;
    const double x = std::strtod(json.c_str() + at, &end);
    if (end == json.c_str() + at) break;
    out.push_back(x);
    at = json.find_first_not_of(" \n,", size_t(end - json.c_str()));
  }
  return out;
}
inline double number(const std::string& json, const std::string& key, double otherwise) {
  const std::vector<double> found = numbers(json, key);
  return found.empty() ? otherwise : found[0];
}

struct Case {
  std::string name, json;
  std::map<std::string, std::vector<double>> tensors;
  const std::vector<double>& operator[](const std::string& tensor) const { return tensors.at(tensor); }
};

inline Case load(const std::filesystem::path& dir) {
  Case c{dir.filename().string(), read(dir / "case.json"), {}};
  const std::string file = read(dir / "expected.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const std::string header = file.substr(8, length);
  const char* data = file.data() + 8 + length;
  for (size_t at = header.find("\"dtype\""); at != std::string::npos; at = header.find("\"dtype\"", at + 1)) {
    const size_t close = header.rfind('"', header.rfind(':', at)), open = header.rfind('"', close - 1);
    const size_t type = header.find('"', at + 8) + 1;
    const std::string name = header.substr(open + 1, close - open - 1);
    const std::string dtype = header.substr(type, header.find('"', type) - type);
    const std::vector<double> range = numbers(header, "data_offsets", at);
    const size_t size = dtype == "F64" ? 8 : dtype == "F32" ? 4 : 1;
    std::vector<double>& out = c.tensors[name];
    for (const char* p = data + size_t(range[0]); p < data + size_t(range[1]); p += size) {
      double d;
      float f;
      if (dtype == "F64")
        std::memcpy(&d, p, 8);
      else if (dtype == "F32")
        std::memcpy(&f, p, 4), d = f;
      else if (dtype == "U8")
        d = uint8_t(*p);
      else
        throw std::runtime_error(name + ": dtype " + dtype);
      out.push_back(d);
    }
  }
  return c;
}

// All cases GROUP/PREFIX*: of RLV_GOLDENS alone if it is set, else of the project's goldens and of a full set
// beside the checkout.
inline std::vector<Case> cases(const std::string& group, const std::string& prefix) {
  std::vector<std::filesystem::path> roots = {"tests/goldens", "../shared/goldens"};
  if (const char* named = std::getenv("RLV_GOLDENS")) roots = {named};
  std::map<std::string, std::filesystem::path> found;
  for (const std::filesystem::path& root : roots)
    if (std::filesystem::exists(root / group))
      for (const auto& entry : std::filesystem::directory_iterator(root / group))
        if (entry.path().filename().string().rfind(prefix, 0) == 0)
          found.emplace(entry.path().filename().string(), entry.path());
  std::vector<Case> out;
  for (const auto& [name, path] : found) out.push_back(load(path));
  return out;
}

}  // namespace goldens
