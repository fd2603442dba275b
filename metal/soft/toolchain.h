// How clang is called for MSL, and where results are kept.
#pragma once
#include <cstdint>
#include <string>

namespace soft {

constexpr uint64_t kHashStart = 0xcbf29ce484222325ull;
uint64_t hash_text(const std::string& text, uint64_t h = kHashStart);
std::string hex(uint64_t h);

// $RLV_SOFT_CACHE, or rlv/soft of the user's cache; empty if it cannot be made.
std::string cache_folder();
std::string toolchain_version();

std::string read_file(const std::string& path);
// Appends what a shell command prints to `out`. Whether it succeeded.
bool output_of(const std::string& command, std::string& out);
// The same with its errors.
bool run_tool(const std::string& command, std::string& log);
// MSL with macros expanded; `own` is a path without suffix for files in between.
bool preprocess(const std::string& source, const std::string& defines, const std::string& own,
                std::string& out, std::string& log);
// clang for C++ for OpenCL with the standard library and the warnings that are errors.
std::string compile_command();

}  // namespace soft
