#include "lexer.h"

#include <cctype>
#include <cstdlib>
#include <cstring>

namespace soft {

namespace {

bool is_identifier_start(char c) { return std::isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool is_identifier(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)); }

class Lexer {
 public:
  explicit Lexer(const std::string& source) : s_(source) { out_.files.push_back("program_source"); }

  Tokens run() {
    while (at_ < s_.size()) next();
    return std::move(out_);
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < s_.size() ? s_[at_ + ahead] : '\0'; }

  void push(size_t begin, TokenKind kind) {
    out_.list.push_back({s_.substr(begin, at_ - begin), kind, line_, file_});
    for (size_t i = begin; i < at_; i++) line_ += s_[i] == '\n';
  }

  void next() {
    const size_t begin = at_;
    const char c = peek();
    if (c == '\n') {
      at_++;
      push(begin, TokenKind::kSpace);
      line_start_ = true;
    } else if (std::isspace(static_cast<unsigned char>(c))) {
      while (peek() != '\n' && at_ < s_.size() && std::isspace(static_cast<unsigned char>(peek()))) at_++;
      push(begin, TokenKind::kSpace);
    } else if (c == '#' && line_start_) {
      directive(begin);
    } else {
      line_start_ = false;
      token(begin, c);
    }
  }

  // # 12 "file": the next line is line 12 of that file.
  void directive(size_t begin) {
    at_ = s_.find('\n', at_);
    if (at_ == std::string::npos) at_ = s_.size();
    push(begin, TokenKind::kSpace);
    const std::string& text = out_.list.back().text;
    size_t i = 1;
    if (text.compare(0, 5, "#line") == 0) i = 5;
    while (i < text.size() && text[i] == ' ') i++;
    if (i >= text.size() || !is_digit(text[i])) return;
    line_ = std::atoi(text.c_str() + i) - 1;
    const size_t open = text.find('"'), close = text.rfind('"');
    if (open != std::string::npos && close > open)
      file_ = file_index(text.substr(open + 1, close - open - 1));
  }

  int file_index(const std::string& name) {
    for (size_t i = 0; i < out_.files.size(); i++)
      if (out_.files[i] == name) return int(i);
    out_.files.push_back(name);
    return int(out_.files.size() - 1);
  }

  void token(size_t begin, char c) {
    if (c == '/' && peek(1) == '/') {
      while (at_ < s_.size() && peek() != '\n') at_++;
      return push(begin, TokenKind::kSpace);
    }
    if (c == '/' && peek(1) == '*') {
      const size_t end = s_.find("*/", at_ + 2);
      at_ = end == std::string::npos ? s_.size() : end + 2;
      return push(begin, TokenKind::kSpace);
    }
    if (is_identifier_start(c)) {
      while (is_identifier(peek())) at_++;
      return push(begin, TokenKind::kIdentifier);
    }
    if (is_digit(c) || (c == '.' && is_digit(peek(1)))) {
      number(begin);
      return push(begin, TokenKind::kLiteral);
    }
    if (c == '"' || c == '\'') {
      at_++;
      while (at_ < s_.size() && peek() != c) at_ += peek() == '\\' ? 2 : 1;
      at_++;
      return push(begin, TokenKind::kLiteral);
    }
    at_++;
    if ((c == ':' && peek() == ':') || (c == '-' && peek() == '>')) at_++;
    push(begin, TokenKind::kPunctuation);
  }

  void number(size_t begin) {
    const bool hex = peek() == '0' && (peek(1) == 'x' || peek(1) == 'X');
    while (at_ < s_.size()) {
      const char c = peek(), before = at_ > begin ? s_[at_ - 1] : '\0';
      const bool exponent_sign = (c == '+' || c == '-') &&
                                 (std::strchr("pP", before) || (!hex && std::strchr("eE", before))) && before;
      if (!is_identifier(c) && c != '.' && !exponent_sign) break;
      at_++;
    }
  }

  const std::string& s_;
  Tokens out_;
  size_t at_ = 0;
  int line_ = 1, file_ = 0;
  bool line_start_ = true;
};

}  // namespace

std::string Tokens::place(size_t i) const {
  return i < list.size() ? files[size_t(list[i].file)] + ":" + std::to_string(list[i].line)
                         : "program_source:0";
}

Tokens lex(const std::string& source) { return Lexer(source).run(); }

}  // namespace soft
