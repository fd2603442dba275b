// Tokens of preprocessed MSL. Their texts put together are the source again.
#pragma once
#include <string>
#include <vector>

namespace soft {

enum class TokenKind { kSpace, kIdentifier, kLiteral, kPunctuation };  // space: comments and # lines too

struct Token {
  std::string text;
  TokenKind kind;
  int line;  // of the original file
  int file;  // index into Tokens::files
  bool is(const char* s) const { return kind != TokenKind::kSpace && text == s; }
};

struct Tokens {
  std::vector<Token> list;
  std::vector<std::string> files;
  // "gemm.metal:12".
  std::string place(size_t i) const;
};

Tokens lex(const std::string& source);

}  // namespace soft
