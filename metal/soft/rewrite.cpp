#include "rewrite.h"

#include <cstdlib>
#include <map>
#include <set>
#include "lexer.h"
#include "toolchain.h"

namespace soft {

namespace {

constexpr size_t kNone = size_t(-1);
constexpr int kLargestBuffer = 30;

const std::map<std::string, std::string>& scalar_attributes() {
  static const std::map<std::string, std::string> names{
      {"thread_index_in_threadgroup", "thread_index_in_threadgroup"},
      {"thread_index_in_simdgroup", "thread_index_in_simdgroup"},
      {"simdgroup_index_in_threadgroup", "simdgroup_index_in_threadgroup"},
      {"simdgroups_per_threadgroup", "simdgroups_per_threadgroup"}};
  return names;
}
const std::set<std::string>& grid_attributes() {
  static const std::set<std::string> names{"thread_position_in_grid",        "threadgroup_position_in_grid",
                                           "thread_position_in_threadgroup", "threads_per_threadgroup",
                                           "threadgroups_per_grid",          "threads_per_grid"};
  return names;
}

bool is_vector_name(const std::string& s) {
  static const std::set<std::string> elements{"float", "half",  "int",  "uint",  "short",  "ushort",
                                              "char",  "uchar", "long", "ulong", "bfloat", "bool"};
  return s.size() > 2 && s.back() >= '2' && s.back() <= '4' && elements.count(s.substr(0, s.size() - 1)) > 0;
}

// Whether positions and sizes may be of this type; of names that are not Metal's own nothing is known.
bool counts(const std::string& type, const std::string& attribute) {
  const bool vector = is_vector_name(type);
  const std::string element = vector ? type.substr(0, type.size() - 1) : type;
  if (!is_vector_name(element + "2")) return true;
  return (element == "uint" || element == "ushort") && (!vector || grid_attributes().count(attribute) > 0);
}

class Rewriter {
 public:
  explicit Rewriter(const std::string& source) : tokens_(lex(source)), t_(tokens_.list) {}

  Rewritten run() {
    declarations();
    expressions();
    for (const Token& token : t_) out_.source += token.text;
    out_.source += trampolines();
    return std::move(out_);
  }

 private:
  // ---- moving over tokens ----
  size_t next(size_t i) const {
    do i++;
    while (i < t_.size() && t_[i].kind == TokenKind::kSpace);
    return i;
  }
  size_t previous(size_t i) const {
    do {
      if (i == 0) return kNone;
      i--;
    } while (t_[i].kind == TokenKind::kSpace);
    return i;
  }
  bool is(size_t i, const char* s) const { return i < t_.size() && t_[i].is(s); }
  bool attribute(size_t i) const { return is(i, "[") && is(next(i), "["); }

  // The bracket that closes the one at i; kNone if there is none.
  size_t closing(size_t i) const {
    const std::string open = t_[i].text;
    const std::string close = open == "(" ? ")" : open == "{" ? "}" : open == "[" ? "]" : ">";
    int depth = 0;
    for (; i < t_.size(); i++) {
      if (t_[i].kind == TokenKind::kSpace) continue;
      if (t_[i].text == open) depth++;
      if (t_[i].text == close && --depth == 0) return i;
      if (open == "<" && (t_[i].text == ";" || t_[i].text == "{")) return kNone;
    }
    return kNone;
  }

  std::string text(size_t begin, size_t end) const {
    std::string s;
    for (size_t i = begin; i < end && i < t_.size(); i++) s += t_[i].text;
    return s;
  }
  // Removes tokens [begin, end) but not their line breaks.
  void blank(size_t begin, size_t end) {
    for (size_t i = begin; i < end && i < t_.size(); i++) {
      if (t_[i].kind == TokenKind::kSpace) continue;
      std::string breaks;
      for (char c : t_[i].text)
        if (c == '\n') breaks += c;
      t_[i].text = breaks;
      t_[i].kind = TokenKind::kSpace;
    }
  }
  void error(size_t i, const std::string& what) {
    out_.errors.push_back(tokens_.place(i) + ": error: " + what);
  }

  // ---- declarations at namespace scope ----
  void declarations() {
    int depth = 0;
    for (size_t i = 0; i < t_.size(); i++) {
      if (t_[i].kind == TokenKind::kSpace) continue;
      if (t_[i].is("{")) depth++;
      if (t_[i].is("}")) depth--;
      if (t_[i].is("constant") && depth == 0)
        constant(i);
      else if (t_[i].is("template") && attribute(next(i)))
        i = instantiation(i);
      else if (t_[i].is("kernel") || (attribute(i) && is(next(next(i)), "kernel")))
        i = kernel(i);
    }
  }

  // constant T name [[function_constant(n)]];
  void constant(size_t i) {
    const size_t type = next(i), name = next(type), open = next(name);
    if (!attribute(open) || !is(next(next(open)), "function_constant")) return derived_constant(i);
    const size_t close = closing(open), value = next(next(next(next(open))));
    FunctionConstant constant;
    constant.type = t_[type].text;
    constant.name = t_[name].text;
    constant.index = std::atoi(t_[value].text.c_str());
    out_.constants.push_back(constant);
    function_constants_[constant.name] = constant;
    blank(i, next(close) + 1);
  }

  // constant T name = expression; with a function constant in it -> inline T name() { return expression; }
  void derived_constant(size_t i) {
    size_t equals = kNone, end = i;
    bool derived = false;
    for (; end < t_.size() && !is(end, ";") && !is(end, "{"); end = next(end)) {
      if (equals == kNone && (is(end, ",") || is(end, ")"))) return;  // a parameter
      if (is(end, "=") && equals == kNone) equals = end;
      derived = derived || function_constants_.count(t_[end].text) || derived_.count(t_[end].text);
    }
    if (!derived || equals == kNone || !is(end, ";")) return;
    derived_.insert(t_[previous(equals)].text);
    t_[i].text = "inline";
    t_[equals].text = "{ return";
    t_[end].text = "; }";
  }

  // template [[host_name("x")]] [[kernel]] decltype(f<T>) f<T>; or with the whole signature.
  size_t instantiation(size_t i) {
    std::string host;
    size_t at = next(i);
    while (attribute(at)) {
      const size_t close = closing(at);
      for (size_t z = at; z < close; z++)
        if (t_[z].is("host_name"))
          for (size_t s = next(next(z)); s < close && t_[s].kind == TokenKind::kLiteral; s = next(s))
            host += t_[s].text.substr(1, t_[s].text.size() - 2);
      blank(at, close + 1);
      at = next(close);
    }
    if (is(at, "kernel")) {
      blank(at, at + 1);
      at = next(at);
    }
    size_t end = at;
    while (end < t_.size() && !t_[end].is(";")) end = next(end);
    std::string call;
    if (is(at, "decltype")) {
      const size_t open = next(at);
      call = text(next(open), closing(open));
    } else {
      size_t name = at;
      while (name < end && !(t_[name].kind == TokenKind::kIdentifier && is(next(name), "<")))
        name = next(name);
      const size_t close = closing(next(name)), open = next(close);
      call = text(name, close + 1);
      std::vector<Argument> ignored;
      parameters(open, closing(open), ignored);
    }
    const std::string base = call.substr(0, call.find_first_of("< \n"));
    const auto known = templates_.find(base);
    if (known == templates_.end()) {
      error(i, "host_name on an instantiation of unknown kernel '" + base + "'");
    } else {
      Kernel made = known->second;
      made.host_name = host;
      add(made, call);
    }
    return end;
  }

  size_t kernel(size_t i) {
    const bool in_template = previous(i) != kNone && is(previous(i), ">");
    Kernel made;
    size_t at = i;
    while (is(at, "kernel") || attribute(at)) {
      const size_t end = attribute(at) ? closing(at) : at;
      for (size_t z = at; z < end; z++)
        if (t_[z].is("max_total_threads_per_threadgroup"))
          made.max_threads = uint32_t(std::atoi(t_[next(next(z))].text.c_str()));
      blank(at, end + 1);
      at = next(end);
    }
    if (!is(at, "void")) {
      error(at, "kernel must return void");
      return at;
    }
    const size_t name = next(at), open = next(name), close = closing(open);
    made.host_name = t_[name].text;
    made.line = uint32_t(t_[name].line);
    parameters(open, close, made.arguments);
    templates_[made.host_name] = made;
    if (!in_template) add(made, made.host_name);
    const size_t body = next(close);
    if (is(body, "{")) threadgroup_variables(body, closing(body));
    return close;
  }

  void add(const Kernel& kernel, const std::string& call) {
    for (const Kernel& other : out_.kernels)
      if (other.host_name == kernel.host_name)
        out_.errors.push_back("program_source: error: two kernels named '" + kernel.host_name + "'");
    out_.kernels.push_back(kernel);
    calls_.push_back(call);
  }

  // ---- kernel parameters ----
  void parameters(size_t open, size_t close, std::vector<Argument>& out) {
    size_t begin = next(open);
    int depth = 0;
    for (size_t i = begin; i <= close; i = next(i)) {
      if (attribute(i)) {
        i = closing(i);
        continue;
      }
      if (i != close && (t_[i].is("(") || t_[i].is("<"))) depth++;
      if (i != close && (t_[i].is(")") || t_[i].is(">"))) depth--;
      if (i == close || (t_[i].is(",") && depth == 0)) {
        if (begin < i) out.push_back(parameter(begin, i));
        begin = next(i);
      }
    }
    std::set<std::pair<std::string, int>> memory;
    std::set<char> components;
    for (const Argument& a : out) {
      if (grid_attributes().count(a.kind)) components.insert(is_vector_name(a.type) ? a.type.back() : '1');
      if (a.kind != "buffer" && a.kind != "threadgroup") continue;
      if (a.index > kLargestBuffer)
        error(open,
              "'" + a.kind + "' attribute of '" + a.name + "' is out of bounds: must be between 0 and 30");
      if (!memory.insert({a.kind, a.index}).second)
        error(open, "two parameters at " + a.kind + "(" + std::to_string(a.index) + ")");
    }
    if (components.size() > 1) error(open, "positions and sizes of different dimensions");
  }

  Argument parameter(size_t begin, size_t end) {
    Argument a;
    std::vector<size_t> words;
    bool pointer = false;
    for (size_t i = begin; i < end; i = next(i)) {
      if (attribute(i)) {
        const size_t close = closing(i);
        for (size_t k = next(next(i)); k < close; k = next(k))
          if (t_[k].kind == TokenKind::kIdentifier) k = parameter_attribute(a, k);
        blank(i, close + 1);
        i = close;
        continue;
      }
      if (t_[i].is("*") || t_[i].is("&")) pointer = true;
      words.push_back(i);
    }
    if (!words.empty()) {
      a.name = t_[words.back()].text;
      a.type = words.size() > 1 ? text(words.front(), words[words.size() - 2] + 1) : "";
    }
    if (a.kind.empty()) error(begin, "kernel parameter '" + a.name + "' has no attribute");
    for (const size_t word : words)
      if (t_[word].is("thread") || (t_[word].is("threadgroup") && a.kind == "buffer"))
        error(begin, "parameter '" + a.name + "' in " + t_[word].text + " memory");
    if (!pointer && words.size() > 1 && !counts(t_[words[words.size() - 2]].text, a.kind))
      error(begin, "type of '" + a.name + "' is none for attribute [[" + a.kind + "]]");
    if (a.kind == "buffer" && !pointer)
      error(begin, "'buffer' attribute of '" + a.name + "', which is no pointer");
    if ((a.kind == "buffer" || a.kind == "threadgroup") && a.index < 0)
      error(begin, "'" + a.kind + "' attribute of '" + a.name + "' needs a literal index");
    return a;
  }

  // name or name(value); returns its last token.
  size_t parameter_attribute(Argument& a, size_t k) {
    const std::string name = t_[k].text;
    std::string value;
    size_t last = k;
    if (is(next(k), "(")) {
      last = closing(next(k));
      value = text(next(next(k)), last);
    }
    if (name == "function_constant") {
      a.function_constant = value;
      return last;
    }
    const bool known = name == "buffer" || name == "threadgroup" || name == "threads_per_simdgroup" ||
                       scalar_attributes().count(name) > 0 || grid_attributes().count(name) > 0;
    if (!known) error(k, "unsupported attribute [[" + name + "]]");
    if (!a.kind.empty()) error(k, "a second attribute [[" + name + "]]");
    a.kind = name;
    char* rest = nullptr;
    if (!value.empty()) {
      const long index = std::strtol(value.c_str(), &rest, 0);
      a.index = *rest == 0 ? int(index) : -1;
    }
    return last;
  }

  // threadgroup T name[..], ..; in a kernel's outermost scope -> references into the group's memory.
  void threadgroup_variables(size_t open, size_t close) {
    int depth = 0;
    for (size_t i = open; i < close; i = next(i)) {
      if (t_[i].is("{")) depth++;
      if (t_[i].is("}")) depth--;
      if (!t_[i].is("threadgroup")) continue;
      const size_t before = previous(i);
      if (!(is(before, ";") || is(before, "{") || is(before, "}") || is(before, "const"))) continue;
      i = threadgroup_declaration(i, depth);
    }
  }

  size_t threadgroup_declaration(size_t i, int depth) {
    // The type ends where the first declarator's name begins.
    size_t name = 0, at = next(i);
    int angle = 0;
    for (;; at = next(at)) {
      if (t_[at].is("<"))
        angle++;
      else if (t_[at].is(">"))
        angle--;
      else if (angle == 0 && (t_[at].is("*") || t_[at].is("&")))
        return i;  // a pointer to threadgroup memory
      else if (angle == 0 && t_[at].kind == TokenKind::kPunctuation && !t_[at].is("::"))
        break;
      else if (angle == 0 && t_[at].kind == TokenKind::kIdentifier)
        name = at;
    }
    if (depth != 1)
      error(i, "threadgroup variable '" + t_[name].text + "' must be in the outermost scope of a kernel");
    const std::string type = text(next(i), name);
    std::string made;
    size_t end = name;
    for (size_t declarator = name;; declarator = next(end)) {
      const std::string variable = t_[declarator].text;
      std::string extents;
      end = next(declarator);
      while (is(end, "[")) {
        const size_t bracket = closing(end);
        extents += text(end, bracket + 1);
        end = next(bracket);
      }
      if (is(end, "=")) {
        error(end, "threadgroup variable '" + variable + "' cannot have an initializer");
        while (!is(end, ";")) end = next(end);
      }
      const std::string call = "soft_threadgroup_variable(" + std::to_string(variables_++) + ", sizeof(" +
                               type + extents + "), " + std::to_string(t_[name].line) + ");";
      made += extents.empty()
                  ? "threadgroup " + type + "& " + variable + " = *(threadgroup " + type + "*)" + call
                  : "threadgroup " + type + "(&" + variable + ")" + extents + " = *(threadgroup " + type +
                        "(*)" + extents + ")" + call;
      if (!is(end, ",")) break;
    }
    blank(i, end + 1);
    t_[i].text = made + t_[i].text;
    return end;
  }

  // ---- expressions ----
  void expressions() {
    for (size_t i = 0; i < t_.size(); i++) {
      if (t_[i].kind != TokenKind::kIdentifier) continue;
      const std::string& s = t_[i].text;
      if (s == "goto" || s == "register" || s == "noexcept" || s == "asm" || s == "try" || s == "throw" ||
          s == "catch")
        error(i, "'" + s + "' is not part of Metal");
      const auto constant = function_constants_.find(s);
      if (constant != function_constants_.end()) {
        constant_use(i, constant->second);
      } else if (derived_.count(s)) {
        t_[i].text += "()";
      } else if (templates_.count(s) && is(next(i), "(") && !is(previous(i), "void")) {
        error(i, "call of kernel '" + s + "'");
      } else if (is_vector_name(s)) {
        const size_t before = previous(i);
        const bool declares =
            before != kNone && (is(before, "operator") || is(before, "device") || is(before, "constant") ||
                                is(before, "threadgroup") || is(before, "thread") || is(before, "const"));
        if (is(next(i), "(") && !declares) t_[i].text = "metal::__make<" + s + ">";
      } else if (s == "vec" && is(next(i), "<")) {
        const size_t close = closing(next(i));
        if (close != kNone && is(next(close), "(")) {
          t_[i].text = "metal::__make<vec";
          t_[close].text = "> >";
        }
      }
    }
  }

  void constant_use(size_t i, const FunctionConstant& constant) {
    const size_t before = previous(i);
    if (is(before, "(") && is(previous(before), "is_function_constant_defined")) {
      t_[previous(before)].text = "soft_function_constant_defined";
      t_[i].text = std::to_string(constant.index);
      return;
    }
    t_[i].text = "metal::__bits_as<" + constant.type + ">(soft_function_constant(" +
                 std::to_string(constant.index) + "))";
  }

  // ---- trampolines ----
  std::string trampolines() const {
    std::string s = "\n# 1 \"trampolines\"\n";
    for (size_t k = 0; k < out_.kernels.size(); k++) {
      s += "extern \"C\" void soft_kernel_" + std::to_string(k) + "(__global const __soft_context* c) { " +
           calls_[k] + "(";
      const auto& arguments = out_.kernels[k].arguments;
      for (size_t i = 0; i < arguments.size(); i++) s += (i ? ", " : "") + argument(arguments[i]);
      s += "); }\n";
    }
    return s;
  }
  static std::string argument(const Argument& a) {
    const std::string index = std::to_string(a.index);
    if (a.kind == "buffer") return "__soft_argument{c->buffers[" + index + "], " + index + "}";
    if (a.kind == "threadgroup") return "__soft_argument{c->threadgroup_memory[" + index + "], -1}";
    if (a.kind == "threads_per_simdgroup") return "32u";
    if (grid_attributes().count(a.kind)) return "__soft_position{c->" + a.kind + "}";
    return "c->" + a.kind;
  }

  Tokens tokens_;
  std::vector<Token>& t_;
  Rewritten out_;
  std::vector<std::string> calls_;  // of each kernel: name or name<T, ..>
  std::map<std::string, Kernel> templates_;
  std::map<std::string, FunctionConstant> function_constants_;
  std::set<std::string> derived_;  // constants that depend on function constants
  int variables_ = 0;
};

}  // namespace

bool translate(const std::string& source, const CompileOptions& options, const std::string& own,
               Rewritten& out, std::string& log) {
  std::string defines, preprocessed;
  for (const auto& [name, value] : options.defines) defines += " -D" + name + "=" + value;
  if (!preprocess(source, defines, own, preprocessed, log)) return false;
  out = rewrite(preprocessed);
  for (const std::string& error : out.errors) log += error + "\n";
  return out.errors.empty();
}

Rewritten rewrite(const std::string& preprocessed) { return Rewriter(preprocessed).run(); }

}  // namespace soft
