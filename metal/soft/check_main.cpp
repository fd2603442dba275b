// Says whether Metal would take a source: msl-check [--lint] [--json] FILE...
//
// Compiles each file as newLibraryWithSource does; --lint adds the rules of lint.h. Prints what is wrong as
// FILE:LINE:COLUMN: error: ...; with --json one line per file: {"file", "errors": [...]}. Exit status 1 if a
// file was refused.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>
#include "compiler.h"
#include "lint.h"

namespace {

constexpr const char* kSourceName = "program_source";

std::string named(std::string line, const std::string& file) {
  const size_t at = line.find(kSourceName);
  return at == 0 ? line.replace(0, std::strlen(kSourceName), file) : line;
}

std::vector<std::string> errors_of(const std::string& file, bool lint) {
  std::ifstream in(file);
  if (!in) return {file + ": error: cannot be read"};
  std::stringstream text;
  text << in.rdbuf();
  soft::CompileOptions options;
  options.fast_math = false;
  std::string log;
  std::vector<std::string> errors;
  const auto library = soft::compile(text.str(), options, log);
  std::stringstream lines(log);
  bool in_library = false;
  for (std::string line; std::getline(lines, line);) {
    const size_t note = line.find(": note: in instantiation");
    if (line.find("error:") != std::string::npos) {
      in_library = line[0] == '/';
      errors.push_back(named(line, file));
    } else if (note != std::string::npos && line[0] != '/' && in_library) {
      in_library = false;
      errors.back() += ", needed at " + named(line.substr(0, note), file);
    }
  }
  if (!library && errors.empty()) errors.push_back(file + ": error: " + log);
  if (library && lint)
    for (const std::string& error : soft::lint(text.str(), options)) errors.push_back(named(error, file));
  return errors;
}

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

}  // namespace

int main(int argc, char** argv) {
  bool lint = false, json = false;
  std::vector<std::string> files;
  for (int i = 1; i < argc; i++) {
    const std::string a = argv[i];
    if (a == "--lint")
      lint = true;
    else if (a == "--json")
      json = true;
    else
      files.push_back(a);
  }
  if (files.empty()) {
    std::fprintf(stderr, "msl-check [--lint] [--json] FILE...\n");
    return 2;
  }
  bool refused = false;
  for (const std::string& file : files) {
    const std::vector<std::string> errors = errors_of(file, lint);
    refused = refused || !errors.empty();
    if (json) {
      std::string list;
      for (const std::string& error : errors) list += (list.empty() ? "" : ",") + quoted(error);
      std::printf("{\"file\":%s,\"errors\":[%s]}\n", quoted(file).c_str(), list.c_str());
    } else {
      for (const std::string& error : errors) std::printf("%s\n", error.c_str());
    }
    std::fflush(stdout);
  }
  return refused ? 1 : 0;
}
