// Tools and log-probabilities, from the request to the result. Tests no template.

package apa

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
)

var add = Tool{Name: "add", Description: "Adds.", Parameters: map[string]any{"type": "object",
	"properties": map[string]any{"n": map[string]any{"enum": []int{1, 2}}}, "required": []string{"n"}, "additionalProperties": false}}

func TestToolsAndCallsAreWrittenAsOpenAIHasThem(t *testing.T) {
	said := Message{Role: "assistant", ToolCalls: []ToolCall{{"call-1", "add", `{"n":1}`}}}
	for value, want := range map[any]string{
		&add: `{"type":"function","function":{"name":"add","description":"Adds.","parameters":{"additionalProperties":false,` +
			`"properties":{"n":{"enum":[1,2]}},"required":["n"],"type":"object"}}}`,
		&said: `{"role":"assistant","content":"","tool_calls":[{"id":"call-1","type":"function",` +
			`"function":{"name":"add","arguments":"{\"n\":1}"}}]}`,
	} {
		if body, err := json.Marshal(value); err != nil || string(body) != want {
			t.Errorf("%s, %v, expected %s", body, err, want)
		}
	}
	var back Message
	body, _ := json.Marshal(said)
	if err := json.Unmarshal(body, &back); err != nil || len(back.ToolCalls) != 1 || back.ToolCalls[0] != said.ToolCalls[0] {
		t.Fatalf("%+v, %v", back, err)
	}
}

func TestADemandedCallIsInTheResultAndCanBeAnswered(t *testing.T) {
	engine := open(t, nil)
	ask := []Message{User("one and one?")}
	for _, choice := range []any{ToolsRequired, CallOf("add")} {
		request := Request{Messages: ask, Tools: []Tool{add}, ToolChoice: choice, MaxTokens: 400, Seed: Ptr(uint64(1))}
		result, err := engine.Complete(background, request)
		if err != nil || result.FinishReason != FinishStop {
			t.Fatalf("%+v, %v", result, err)
		}
		if len(result.ToolCalls) != 1 || result.ToolCalls[0].Name != "add" || result.ToolCalls[0].ID == "" {
			t.Fatalf("%+v", result)
		}
		var arguments struct{ N int }
		if err := json.Unmarshal([]byte(result.ToolCalls[0].Arguments), &arguments); err != nil || arguments.N < 1 || arguments.N > 2 {
			t.Fatalf("%+v, %v", result, err)
		}
		answered := append(ask, Message{Role: "assistant", ToolCalls: result.ToolCalls},
			Message{Role: "tool", ToolCallID: result.ToolCalls[0].ID, Name: "add", Content: "2"})
		request = Request{Messages: answered, Tools: []Tool{add}, ToolChoice: ToolsNone, MaxTokens: 4}
		if result, err := engine.Complete(background, request); err != nil || result.ToolCalls != nil {
			t.Fatalf("%+v, %v", result, err)
		}
	}
}

func TestWrongToolsAreNamed(t *testing.T) {
	engine := open(t, nil)
	ask := []Message{User("hi")}
	for _, c := range []struct {
		request Request
		says    string
	}{
		{Request{Messages: ask, Tools: []Tool{{Name: "a b"}}}, "tools[0]: function.name"},
		{Request{Messages: ask, Tools: []Tool{{Name: "a\xff"}}}, "tools[0].name is not valid UTF-8 from byte 1 on"},
		{Request{Messages: ask, ToolChoice: ToolsRequired}, "no tools"},
		{Request{Messages: ask, Tools: []Tool{add}, ToolChoice: CallOf("ad")}, "tool_choice names \"ad\", which is not among the tools"},
		{Request{Messages: ask, TopLogprobs: 2}, "top_logprobs is set without logprobs"},
		{Request{Prompt: "a", TopLogprobs: 2}, "top_logprobs is set without logprobs"},
		{Request{Prompt: "a", Logprobs: true, TopLogprobs: 6}, "logprobs is 6"},
	} {
		if _, err := engine.Generate(background, c.request); !errors.Is(err, ErrArg) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: error is %v, expected one of ErrArg that says %q", c.request, err, c.says)
		}
	}
}

func TestLogprobsComeWithEachToken(t *testing.T) {
	engine := open(t, nil)
	for _, request := range []Request{
		{Messages: []Message{User("hi")}, Logprobs: true, TopLogprobs: 3},
		{Prompt: "the", Logprobs: true, TopLogprobs: 3},
		{Prompt: "the", Logprobs: true},
		{Prompt: "the"},
	} {
		request.MaxTokens, request.Temperature = 6, Ptr(0.0)
		result, err := engine.Complete(background, request)
		if err != nil {
			t.Fatal(err)
		}
		if !request.Logprobs {
			if result.Logprobs != nil {
				t.Fatalf("%+v, unasked", result)
			}
			continue
		}
		if len(result.Logprobs) == 0 {
			t.Fatalf("%+v has no logprobs", result)
		}
		var text []byte
		for _, token := range result.Logprobs {
			text = append(text, token.Bytes...)
			if len(token.Top) != request.TopLogprobs || token.Logprob > 0 || math.IsNaN(token.Logprob) {
				t.Fatalf("%+v", token)
			}
			// Greedy takes the most probable one.
			if len(token.Top) > 0 && (token.Top[0].ID != token.ID || token.Top[0].Logprob < token.Top[1].Logprob) {
				t.Fatalf("%+v", token)
			}
		}
		if strings.ToValidUTF8(string(text), "\uFFFD") != strings.ToValidUTF8(result.Text, "\uFFFD") && !strings.Contains(result.Text, "\uFFFD") {
			t.Fatalf("the tokens are %q, the text %q", text, result.Text)
		}
	}
}
