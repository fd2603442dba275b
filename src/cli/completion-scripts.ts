/** The shells' side of completions: each asks the program itself (complete.ts) what may follow on the line. */
import { COMPLETE_COMMAND } from "../core/version.ts";
import { FILES } from "./complete.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

/** Words are taken from the line, since bash also splits at = and :, which a candidate then may not repeat. */
const BASH = `# rlv's completions for bash 3.2 and later: eval "$(rlv completions bash)"
_rlv() {
  local IFS=$' \\t\\n' line=\${COMP_LINE:0:COMP_POINT} word meaning
  local -a words
  read -r -a words <<<"$line"
  case $line in *[[:space:]]) words+=("") ;; esac
  local current=\${words[\${#words[@]}-1]} shown=\${COMP_WORDS[COMP_CWORD]}
  case $shown in [=:]) shown= ;; esac
  local ahead=\${current%"$shown"}
  COMPREPLY=()
  while IFS=$'\\t' read -r word meaning; do
    if [ "$word" = "${FILES}" ]; then
      compopt -o filenames 2>/dev/null
      while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$shown")
    else
      COMPREPLY+=("\${word#"$ahead"}")
    fi
  done < <("\${words[0]}" ${COMPLETE_COMMAND} "\${words[@]:1}" 2>/dev/null)
}
complete -F _rlv rlv
`;

const ZSH = `#compdef rlv
# rlv's completions for zsh: eval "$(rlv completions zsh)", or this file as _rlv in a folder of fpath
_rlv() {
  local -a described
  local word meaning files=0
  while IFS=$'\\t' read -r word meaning; do
    if [[ $word == ${FILES} ]]; then
      files=1
    else
      described+=("\${word//:/\\\\:}\${meaning:+:$meaning}")
    fi
  done < <("$words[1]" ${COMPLETE_COMMAND} "\${(@)words[2,CURRENT]}" 2>/dev/null)
  (( $#described )) && _describe -t words rlv described
  (( files )) && { [[ $PREFIX == --*=* ]] && compset -P '*='; _files }
}
if [[ $funcstack[1] == _rlv ]]; then _rlv "$@"; else compdef _rlv rlv; fi
`;

const FISH = `# rlv's completions for fish: rlv completions fish | source
function __rlv_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    test -n "$current"; or set current ""
    for line in ($words[1] ${COMPLETE_COMMAND} $words[2..-1] $current 2>/dev/null)
        if test "$line" = "${FILES}"
            __fish_complete_path $current
        else
            echo $line
        end
    end
end
complete -c rlv -f -a "(__rlv_complete)"
`;

const SCRIPTS: Readonly<Record<Shell, string>> = { bash: BASH, zsh: ZSH, fish: FISH };

export function completionScript(shell: Shell): string {
  return SCRIPTS[shell];
}
