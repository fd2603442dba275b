#include "lint.h"

#include <cxxabi.h>
#include <unistd.h>
#include <cstdlib>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include "rewrite.h"
#include "toolchain.h"

namespace soft {

namespace {

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

// One line of the dump: "| |-Kind 0x1234 <range> place words 'type':'type without aliases' more".
struct Node {
  size_t depth;
  std::string kind, name, type, plain, line;

  explicit Node(const std::string& text) : depth(text.find_first_not_of("|`- ")), line(text) {
    if (depth == std::string::npos) return;
    kind = text.substr(depth, text.find(' ', depth) - depth);
    const size_t quote = text.find('\'');
    if (quote == std::string::npos) return;
    static const std::regex kType("'([^']*)'(?::'([^']*)')?");
    std::smatch m;
    std::regex_search(text, m, kType);
    type = m[1];
    plain = m[2].matched ? m[2] : m[1];
    static const std::regex kName(
        "> (?:\\S+:\\d+ )?(?:(?:used|referenced|invalid|constexpr) )*(operator\\S+|\\w*) ?$");
    const std::string before = text.substr(0, quote);
    if (std::regex_search(before, m, kName)) name = m[1];
  }
  bool is_declaration() const {
    static const std::set<std::string> kinds{"VarDecl", "ParmVarDecl", "FieldDecl", "TypeAliasDecl",
                                             "TypedefDecl"};
    return kinds.count(kind) > 0;
  }
  bool is_function() const { return kind == "FunctionDecl" || kind == "CXXMethodDecl"; }
  bool is_cast() const { return kind.find("Cast") != std::string::npos && kind != "ImplicitCastExpr"; }
  bool is_implicit() const { return line.find(" implicit ") != std::string::npos; }
};

// Address spaces that clang assumes where Metal wants them said: `__generic`, or none in a template; and
// member functions, which without a qualifier are for objects in thread memory. And OpenCL's ?: of vectors.
void types(const std::string& dump, std::vector<std::string>& errors) {
  static const std::regex kAssumed("__generic|^(const |volatile )*(typename )?(?!auto )\\w+ (const )?[*&]+$");
  static const std::regex kElsewhere("__(global|constant|local)\\b");
  Place place;
  std::set<std::string> seen;
  const auto report = [&](const std::string& what) {
    const std::string error = place.text() + ": error: " + what;
    if (seen.insert(error).second) errors.push_back(error);
  };
  size_t implicit = std::string::npos;  // depth of the implicit declaration that nodes are in
  enum { kOther, kMember, kConverted, kConditional } before = kOther;
  std::stringstream lines(dump);
  for (std::string line; std::getline(lines, line);) {
    place.follow(line.substr(0, line.find('\'')));
    const Node node(line);
    if (node.depth > implicit) continue;
    implicit =
        node.is_implicit() && node.kind.find("Decl") != std::string::npos ? node.depth : std::string::npos;
    if (!place.in_source() || implicit != std::string::npos) continue;
    if (before == kConverted && std::regex_search(node.type, kElsewhere))
      report("call of a member function for thread memory on an object in '" + node.type + "'");
    if (before == kConditional && node.plain.find("ext_vector_type") != std::string::npos)
      report("vector as condition of ?:");
    if (before == kMember && line.find("<AddressSpaceConversion>") != std::string::npos)
      before = kConverted;
    else if (node.type == "<bound member function type>")
      before = kMember;
    else
      before = node.kind == "ConditionalOperator" ? kConditional : kOther;

    const std::string type = node.is_function() ? node.type.substr(0, node.type.find('(')) : node.type;
    if (!std::regex_search(type, kAssumed)) continue;
    if (node.is_declaration() || node.is_function())
      report("pointer type of '" + node.name + "' must have an explicit address space qualifier");
    else if (node.is_cast())
      report("pointer type of a cast must have an explicit address space qualifier");
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

std::string readable(const std::string& symbol) {
  char* text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, nullptr);
  const std::string name = text ? text : symbol;
  std::free(text);
  return name;
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
    if (reached.count(function))
      errors.push_back("program_source: error: '" + readable(function) + "' calls itself");
  }
}

}  // namespace

std::vector<std::string> lint(const std::string& source, const CompileOptions& options) {
  const std::string own = cache_folder() + "/lint." + std::to_string(getpid());
  Rewritten rewritten;
  std::string log;
  if (!translate(source, options, own, rewritten, log)) return {log};
  const std::string input = own + ".cl", ir = own + ".ll";
  std::ofstream(input) << rewritten.source;
  std::vector<std::string> errors;
  const std::string compile = compile_command() + " -w " + input;
  std::string dump;
  if (!run_tool(compile + " -fsyntax-only -Xclang -ast-dump -fno-color-diagnostics", dump))
    errors.push_back(dump);
  types(dump, errors);
  if (!run_tool(compile + " -O0 -S -emit-llvm -o " + ir, log)) errors.push_back(log);
  recursion(read_file(ir), errors);
  unlink(input.c_str());
  unlink(ir.c_str());
  return errors;
}

}  // namespace soft
