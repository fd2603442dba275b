import type { FunctionComponent } from "preact";
import { useMemo } from "preact/hooks";

/** A component that is drawn again only when one of its properties changes; all of them are always given. */
export function memo<P extends object>(Body: FunctionComponent<P>): FunctionComponent<P> {
  return (props) => useMemo(() => <Body {...props} />, Object.values(props));
}
