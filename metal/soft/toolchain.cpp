#include "toolchain.h"

#include <sys/stat.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace soft {

uint64_t hash_text(const std::string& text, uint64_t h) {
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3ull;
  return h;
}

std::string hex(uint64_t h) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(h));
  return text;
}

std::string cache_folder() {
  const char *own = std::getenv("RLV_SOFT_CACHE"), *xdg = std::getenv("XDG_CACHE_HOME"),
             *home = std::getenv("HOME");
  std::string folder;
  if (own && *own)
    folder = own;
  else if (xdg && *xdg)
    folder = std::string(xdg) + "/rlv/soft";
  else if (home && *home)
    folder = std::string(home) + "/.cache/rlv/soft";
  else
    return "";
  for (size_t at = 0; at != std::string::npos;) {
    at = folder.find('/', at + 1);
    mkdir(folder.substr(0, at).c_str(), 0755);
  }
  struct stat info;
  return stat(folder.c_str(), &info) == 0 && S_ISDIR(info.st_mode) ? folder : "";
}

std::string read_file(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

bool output_of(const std::string& command, std::string& out) {
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) {
    out = "cannot start " + command;
    return false;
  }
  char chunk[4096];
  for (size_t n; (n = fread(chunk, 1, sizeof chunk, pipe)) > 0;) out.append(chunk, n);
  return pclose(pipe) == 0;
}

bool run_tool(const std::string& command, std::string& log) { return output_of(command + " 2>&1", log); }

std::string toolchain_version() {
  std::string version;
  run_tool(SOFT_CLANG " --version", version);
  return version;
}

bool preprocess(const std::string& source, const std::string& defines, const std::string& own,
                std::string& out, std::string& log) {
  const std::string in = own + ".metal", made = own + ".i";
  {
    std::ofstream file(in);
    file << "# 1 \"program_source\"\n" << source;
  }
  const bool ok = run_tool(
      SOFT_CLANG " -E -x c++ -std=c++17 -nostdinc -undef -D__METAL__=1 -D__METAL_VERSION__=310 -I" SOFT_HOME
                 "/msl-preprocess" +
          defines + " - <" + in + " -o " + made,
      log);
  out = read_file(made);
  unlink(in.c_str());
  unlink(made.c_str());
  return ok;
}

std::string compile_command() {
  std::string command = SOFT_CLANG
      " -x clcpp -cl-std=clc++2021 -cl-no-stdinc"
      " -Xclang -cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space"
      " -include " SOFT_HOME "/msl/metal_stdlib -I" SOFT_HOME
      "/msl -fno-math-errno -ffp-contract=off -fno-vectorize -fno-slp-vectorize"
      " -Wno-unknown-attributes -Wno-unknown-pragmas -Wno-psabi"
      " -Werror=uninitialized -Werror=sometimes-uninitialized -Werror=return-type "
      "-Werror=shift-count-overflow"
      " -Werror=division-by-zero -Werror=shadow -Werror=array-bounds -Werror=tautological-compare"
      " -Werror=implicit-fallthrough -Werror=parentheses -Werror=unused-value -Werror=global-constructors"
      " -Werror=pre-c++17-compat";
#if defined(__x86_64__)
  command += " -mavx2 -mfma -mf16c";
#endif
  return command;
}

}  // namespace soft
