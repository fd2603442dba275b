#include "lint.h"

#include <unistd.h>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include "rewrite.h"
#include "toolchain.h"

namespace soft {

namespace {

std::string lines_of(const std::string& path) {
  std::stringstream s;
  s << std::ifstream(path).rdbuf();
  return s.str();
}

// clang's AST dump names a place only by what changed since the place before.
class Place {
 public:
  void follow(const std::string& text) {
    static const std::regex kPlace("([^<>, ]*):(\\d+):(\\d+)");
    for (std::sregex_iterator m(text.begin(), text.end(), kPlace), end; m != end; ++m) {
      if ((*m)[1] != "line") file_ = (*m)[1];
      line_ = (*m)[2];
    }
  }
  // The standard library is given by an absolute path.
  bool in_source() const { return !file_.empty() && file_[0] != '/' && file_[0] != '<'; }
  std::string text() const { return file_ + ":" + line_; }

 private:
  std::string file_, line_;
};

// A declared pointer or reference whose address space clang had to assume: `__generic`, or none in a
// template.
void unqualified_pointers(const std::string& dump, std::vector<std::string>& errors) {
  static const std::regex kDeclaration(
      "(VarDecl|ParmVarDecl|FieldDecl) 0x[0-9a-f]+ (?:parent 0x[0-9a-f]+ )?(?:prev 0x[0-9a-f]+ )?"
      "<[^']*?> (?:\\S+:\\d+ )?(?:implicit )?(?:used |referenced |invalid )*(\\w+) '([^']*)'");
  static const std::regex kAssumed("__generic|^(const |volatile )*(typename )?\\w+ (const )?[*&]+$");
  Place place;
  std::stringstream lines(dump);
  std::set<std::string> seen;
  for (std::string line; std::getline(lines, line);) {
    place.follow(line.substr(0, line.find('\'')));
    std::smatch m;
    if (!place.in_source() || line.find(" implicit ") != std::string::npos) continue;
    if (!std::regex_search(line, m, kDeclaration) || !std::regex_search(m[3].str(), kAssumed)) continue;
    const std::string error = place.text() + ": error: pointer type of '" + m[2].str() +
                              "' must have an explicit address space qualifier";
    if (seen.insert(error).second) errors.push_back(error);
  }
}

// Functions of unoptimised LLVM IR with what they call.
std::map<std::string, std::set<std::string>> call_graph(const std::string& ir) {
  static const std::regex kDefine("^define .*?@([^\\s(]+)\\("), kCall("\\bcall .*?@([^\\s(]+)\\(");
  std::map<std::string, std::set<std::string>> calls;
  std::string function;
  std::stringstream lines(ir);
  for (std::string line; std::getline(lines, line);) {
    std::smatch m;
    if (line.compare(0, 7, "define ") == 0 && std::regex_search(line, m, kDefine))
      calls[function = m[1]];
    else if (line.find("call ") != std::string::npos && std::regex_search(line, m, kCall))
      calls[function].insert(m[1]);
  }
  return calls;
}

void recursion(const std::string& ir, std::vector<std::string>& errors) {
  const auto calls = call_graph(ir);
  for (const auto& [function, callees] : calls) {
    std::set<std::string> reached;
    std::vector<std::string> open(callees.begin(), callees.end());
    while (!open.empty()) {
      const std::string next = open.back();
      open.pop_back();
      const auto known = calls.find(next);
      if (known == calls.end() || !reached.insert(next).second) continue;
      open.insert(open.end(), known->second.begin(), known->second.end());
    }
    if (reached.count(function)) errors.push_back("program_source: error: '" + function + "' calls itself");
  }
}

}  // namespace

std::vector<std::string> lint(const std::string& source, const CompileOptions& options) {
  std::string defines;
  for (const auto& [name, value] : options.defines) defines += " -D" + name + "=" + value;
  const std::string own = cache_folder() + "/lint." + std::to_string(getpid());
  std::string preprocessed, log;
  if (!preprocess(source, defines, own, preprocessed, log)) return {log};
  const std::string input = own + ".cl", ir = own + ".ll";
  std::ofstream(input) << rewrite(preprocessed).source;
  std::vector<std::string> errors;
  const std::string compile = compile_command() + defines + " -w " + input;
  std::string dump;
  if (!run_tool(compile + " -fsyntax-only -Xclang -ast-dump -fno-color-diagnostics", dump))
    errors.push_back(dump);
  unqualified_pointers(dump, errors);
  if (!run_tool(compile + " -O0 -S -emit-llvm -o " + ir, log)) errors.push_back(log);
  recursion(lines_of(ir), errors);
  unlink(input.c_str());
  unlink(ir.c_str());
  return errors;
}

}  // namespace soft
