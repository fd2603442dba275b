import { useState } from "preact/hooks";
import type { ChatToken } from "../../core/chat.ts";
import { type Reply, regenerate } from "./chat-state.ts";
import { count, figure, percent } from "./format.ts";
import { memo } from "./memo.tsx";
import { Failure, IconButton } from "./parts.tsx";
import { tokenOf, Visible } from "./tokens.tsx";

/** Controls would be invisible, and marks of direction would turn the line around. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is replaced
const HARMFUL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const clean = (text: string) => text.replace(HARMFUL, "\ufffd");

const heat = (logprob: number | null): string =>
  logprob === null ? "" : ` heat h${Math.min(9, Math.floor(-logprob * 2))}`;

interface ReplyProps {
  readonly reply: Reply;
  readonly label: string;
  readonly shade: boolean;
  /** Its place in the conversation. */
  readonly index: number;
  readonly column: number;
  /** While something is replied, nothing else is begun. */
  readonly locked: boolean;
}

/** A reply token by token; what lies under the pointer is told in the line below. Drawn again only when it changes. */
export const ReplyView = memo(({ reply, label, shade, index: place, column, locked }: ReplyProps) => {
  const onAgain = locked ? null : () => regenerate(place, column);
  const { tokens, done, error, running } = reply;
  const [at, setAt] = useState<number | null>(null);
  const [unfolded, setUnfolded] = useState(false);
  const thoughts = tokens.some(({ thinking, text }) => thinking && text !== "");
  const answered = tokens.some(({ thinking, text }) => !thinking && text !== "");
  const pointed = (event: Event) => setAt(tokenOf(event));
  const moved = (event: KeyboardEvent) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const by = event.key === "ArrowRight" ? 1 : -1;
    setAt(Math.max(0, Math.min(tokens.length - 1, (at ?? -1) + by)));
  };
  const text = (thinking: boolean) =>
    tokens.map((token, index) =>
      token.thinking !== thinking || token.text === "" ? null : (
        <span
          key={index}
          data-token={index}
          class={`token${shade ? heat(token.logprob) : ""}${index === at ? " at" : ""}`}
        >
          {clean(token.text)}
        </span>
      ),
    );
  return (
    <article class="reply" aria-label={`reply of ${label}`} aria-busy={running}>
      {thoughts ? (
        <details
          class="thoughts"
          open={unfolded || (running && !answered)}
          onToggle={(event) => {
            if (!running) setUnfolded((event.currentTarget as HTMLDetailsElement).open);
          }}
        >
          <summary>{running && !answered ? "thinking" : "thoughts"}</summary>
          {/* biome-ignore lint/a11y/useKeyWithMouseEvents: by keyboard the arrow keys walk along the answer */}
          {/* biome-ignore lint/a11y/noStaticElementInteractions: as above */}
          <div class="text" onMouseOver={pointed} onMouseLeave={() => setAt(null)}>
            {text(true)}
          </div>
        </details>
      ) : null}
      {/* biome-ignore lint/a11y/useKeyWithMouseEvents: by keyboard the arrow keys walk along the tokens */}
      <div
        class="text"
        role="application"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: as above
        tabIndex={0}
        aria-label="reply, token by token; arrow keys move along"
        onMouseOver={pointed}
        onClick={pointed}
        onMouseLeave={() => setAt(null)}
        onKeyDown={moved}
        onBlur={() => setAt(null)}
      >
        {text(false)}
        {running ? <i class="caret" /> : null}
      </div>
      {error === null ? null : <Failure error={new Error(error)} again={onAgain ?? undefined} />}
      <footer class="under">
        {at !== null && tokens[at] ? (
          <Under token={tokens[at]} />
        ) : done !== null ? (
          <span title={`mean log p ${figure(done.logprob / Math.max(1, done.tokens), 3)}`}>
            {count(done.tokens)} tokens
            {done.finish === "eos" ? "" : done.finish === "stop" ? ", stopped" : ", cut at the limit"} ·{" "}
            {figure(Math.max(0, done.tokens - 1) / Math.max(1e-9, done.seconds - done.promptSeconds), 3)}{" "}
            tokens/s · prompt {count(done.promptTokens)}: {count(done.reusedTokens)} reused,{" "}
            {count(done.encodedTokens)} encoded
          </span>
        ) : running ? (
          <span>{tokens.length === 0 ? "reading" : `${count(tokens.length)} tokens`}</span>
        ) : null}
        {onAgain === null || running || error !== null ? null : (
          <IconButton name="again" label="Regenerate this reply" onClick={onAgain} />
        )}
      </footer>
    </article>
  );
});

function Under({ token }: { token: ChatToken }) {
  return (
    <span class="figures">
      <code>
        <Visible text={token.text} spaces />
      </code>
      {token.logprob === null ? null : (
        <span>
          log p <b>{figure(token.logprob)}</b> · p <b>{percent(Math.exp(token.logprob), 1)}</b>
        </span>
      )}
      {token.alternatives.length === 0 ? null : (
        <span class="alternatives">
          {token.alternatives.map(({ text, logprob }, index) => (
            <span key={index} title={`log p ${figure(logprob)}`}>
              <code>{text === "" ? "∅" : <Visible text={text} spaces />}</code>{" "}
              {percent(Math.exp(logprob), 1)}
            </span>
          ))}
        </span>
      )}
    </span>
  );
}
