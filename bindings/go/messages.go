// Conversations and the tools that they may use, in the form that templates know. Never runs a tool.

package apa

import (
	"encoding/json"
	"fmt"
)

// Message is one of a conversation.
type Message struct {
	Role       string     `json:"role"`                   // system, user, assistant, tool or another that the model's template knows.
	Content    string     `json:"content"`                // The text.
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`   // Of an assistant: the calls that it wanted made.
	ToolCallID string     `json:"tool_call_id,omitempty"` // Of a tool: the call that it answers.
	Name       string     `json:"name,omitempty"`         // Of a tool: its name, where the template wants it.
}

// User is a message of the user.
func User(content string) Message { return Message{Role: "user", Content: content} }

// Tool is a function that the model may call. The application makes the call and answers with a message of role "tool".
type Tool struct {
	Name        string // 1 to 64 letters, digits, _, - and . characters.
	Description string // What it does, for the model.
	Parameters  any    // JSON schema of its arguments, an object; nil takes none.
}

// MarshalJSON writes it as OpenAI's requests have it.
func (t Tool) MarshalJSON() ([]byte, error) {
	type function struct {
		Name        string `json:"name"`
		Description string `json:"description,omitempty"`
		Parameters  any    `json:"parameters,omitempty"`
	}
	return json.Marshal(struct {
		Type     string   `json:"type"`
		Function function `json:"function"`
	}{"function", function{t.Name, t.Description, t.Parameters}})
}

// ToolCall is a call that the model wants made.
type ToolCall struct {
	ID        string // Names the call, for the message that answers it.
	Name      string // The tool.
	Arguments string // A JSON object.
}

// wireCall is a call as OpenAI's messages have it.
type wireCall struct {
	ID       string `json:"id,omitempty"`
	Type     string `json:"type"`
	Function struct {
		Name      string `json:"name"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

// MarshalJSON writes it as OpenAI's messages have it.
func (c ToolCall) MarshalJSON() ([]byte, error) {
	wire := wireCall{ID: c.ID, Type: "function"}
	wire.Function.Name, wire.Function.Arguments = c.Name, c.Arguments
	return json.Marshal(wire)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (c *ToolCall) UnmarshalJSON(body []byte) error {
	var wire wireCall
	err := json.Unmarshal(body, &wire)
	*c = ToolCall{wire.ID, wire.Function.Name, wire.Function.Arguments}
	return err
}

// Choices of a tool, for Request.ToolChoice.
const (
	ToolsNone     = "none"     // The answer is text.
	ToolsAuto     = "auto"     // The model decides; also what nil means.
	ToolsRequired = "required" // The answer is a call of one of the tools.
)

// CallOf is a choice, for Request.ToolChoice: the answer is a call of the tool with this name.
func CallOf(name string) any {
	return map[string]any{"type": "function", "function": map[string]string{"name": name}}
}

func checkMessages(messages []Message) error {
	for i, m := range messages {
		member := func(name, value string) text { return text{fmt.Sprintf("messages[%d].%s", i, name), value} }
		texts := []text{member("role", m.Role), member("content", m.Content), member("tool_call_id", m.ToolCallID), member("name", m.Name)}
		for j, call := range m.ToolCalls {
			at := fmt.Sprintf("tool_calls[%d].", j)
			texts = append(texts, member(at+"id", call.ID), member(at+"name", call.Name), member(at+"arguments", call.Arguments))
		}
		if err := checkTexts(texts...); err != nil {
			return err
		}
	}
	return nil
}

func checkTools(tools []Tool) error {
	for i, t := range tools {
		at := fmt.Sprintf("tools[%d].", i)
		if err := checkTexts(text{at + "name", t.Name}, text{at + "description", t.Description}); err != nil {
			return err
		}
	}
	return nil
}
